"""Show where the time of a run goes, as text and pictures. No other package imports these modules."""
