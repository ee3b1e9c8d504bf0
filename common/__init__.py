"""What a run means, written once: data, tokenizer, bits per byte, quantizer, artifact format and the training run itself."""
