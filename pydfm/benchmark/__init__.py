"""Named configurations run over data sets: resumable CSV files, and tables beside published ones.

- configuration: parameters of a `DFM` under a name, from a TOML file;
- record: the CSV file, a line per result, which resumes where it was stopped;
- mvtec: categories in MVTec AD's layout; published: the figures of others on them;
- outliers: out-of-distribution detection, per layer and score type;
- table: Markdown.
"""
