"""``ctfoundry finetune``: a model for a task from labelled scans."""
