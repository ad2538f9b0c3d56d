"""Remote storage (`s3://`, `gs://`, `hdfs://`, ...), through fsspec; inputs are read from a cache on this machine."""
