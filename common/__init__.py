"""What a run means, written once: data, tokenizer, bits per byte, quantizer, model file and the training run itself."""
