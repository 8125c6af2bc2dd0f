"""Data sets and the LightningDataModule that turns them into batches."""
