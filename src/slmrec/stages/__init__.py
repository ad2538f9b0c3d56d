"""One module a stage: prepare, pretrain, finetune, distill, evaluate, and run, which strings them together."""
