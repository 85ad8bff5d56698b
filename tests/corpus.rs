//! What once broke a reader, or leads far into one, goes through the fuzz targets in every run of the tests.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

#[test]
fn every_input_of_the_corpora_is_survived() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let directory = corpora.join(name);
        let entries =
            std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "no inputs in {}", directory.display());
        for path in paths {
            // Shown only when it fails.
            println!("{}", path.display());
            target(&std::fs::read(&path).unwrap());
        }
    }
}
