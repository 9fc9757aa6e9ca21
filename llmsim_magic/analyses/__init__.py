"""From the record to numbers: dataflow, work, traffic, folding. No framework."""
