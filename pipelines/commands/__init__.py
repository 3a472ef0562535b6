"""What make calls beside the pipeline: doctor, team cache, comparisons."""
