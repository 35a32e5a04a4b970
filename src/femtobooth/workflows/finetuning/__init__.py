"""What `finetune` consists of besides its training: what it says of the data and of the result."""
