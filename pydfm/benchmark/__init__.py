"""Named configurations measured on data sets: resumable CSV files, tables beside published ones.

- configuration: parameters of a `DFM` under a name, from a TOML file;
- record: the CSV file, one line for each result, from which a stopped run continues;
- mvtec: categories in MVTec AD's layout; published: figures of others on them;
- outliers: out-of-distribution detection, for each layer and score type;
- table: Markdown.
"""
