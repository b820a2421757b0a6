//! Trees of files.

use std::fs;
use std::path::Path;

use super::Random;

/// A tree of files of all sizes, small ones and some that take several calls.
pub fn make_tree(at: &Path) {
    let mut random = Random(3);
    for directory in 0..8 {
        let directory = at.join(format!("directory-{directory}"));
        fs::create_dir_all(&directory).expect("a directory");
        for file in 0..40 {
            let length = if file % 13 == 0 { 200_000 + random.below(900_000) } else { random.below(3000) };
            fs::write(directory.join(format!("file-{file}")), random.bytes(length as usize)).expect("a file");
        }
    }
    fs::write(at.join("large"), random.bytes(9 << 20)).expect("a file");
}

/// Panics unless both have the same files with the same bytes.
pub fn same_trees(one: &Path, other: &Path) {
    let entries = |at: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(at).expect("a directory").map(|entry| entry.expect("one").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(entries(one), entries(other), "{}", one.display());
    for name in entries(one) {
        let (one, other) = (one.join(&name), other.join(&name));
        match one.is_dir() {
            true => same_trees(&one, &other),
            false => assert!(fs::read(&one).expect("a file") == fs::read(&other).expect("a file"), "{}", one.display()),
        }
    }
}
