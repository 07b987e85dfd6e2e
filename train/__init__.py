"""The programs that pretrain, fine-tune, evaluate and convert; never imported by the Hub files."""
