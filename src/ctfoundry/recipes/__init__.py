"""Experiments as data, one YAML file each: pretraining here, fine-tuning in ``finetune/``; `ctfoundry.recipes.load` reads them."""
