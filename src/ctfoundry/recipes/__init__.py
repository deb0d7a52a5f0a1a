"""Published experiments as data, one YAML file each; `ctfoundry.pretrain.recipe.load_recipe` reads them."""
