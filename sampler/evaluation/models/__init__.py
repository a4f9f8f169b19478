"""Tables of real models: a pipeline's folder, lists of prompts and judges that the user brings."""
