"""From a pretrained encoder to a task: probes on frozen features, fine-tuning."""
