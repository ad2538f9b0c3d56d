"""The models: SASRec, and a pretrained decoder over item vectors."""
