//! What the command line says: help, usage errors, failures, exit codes.
//!
//! A case is a file of `cases/`: lines `$ atoll …`, each followed by what it prints (standard error after standard
//! output) and, if it is not 0, `? CODE`. After a deliberate change write them anew with
//! `ATOLL_BLESS=1 cargo test -p atoll --test command_line` and read the difference.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs one command line in `directory` and shows what came of it.
fn run(line: &str, directory: &Path) -> String {
    let mut words = split(line);
    assert_eq!(words.next().as_deref(), Some("atoll"), "a case runs atoll: {line}");
    let output = Command::new(env!("CARGO_BIN_EXE_atoll"))
        .args(words)
        .current_dir(directory)
        .env_remove("ATOLL_STATE")
        .env_remove("COLUMNS")
        .env("NO_COLOR", "1")
        .output()
        .expect("the binary runs");
    let mut shown = format!("$ {line}\n");
    shown.push_str(&String::from_utf8_lossy(&output.stdout));
    shown.push_str(&String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => {}
        Some(code) => writeln!(shown, "? {code}").expect("a string takes all"),
        None => writeln!(shown, "? {}", output.status).expect("a string takes all"),
    }
    // The version is not what these cases are about.
    shown.replace(env!("CARGO_PKG_VERSION"), "[VERSION]")
}

/// Splits at spaces, except inside single quotes.
fn split(line: &str) -> impl Iterator<Item = String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for character in line.chars() {
        match character {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words.into_iter()
}

#[test]
fn every_command_line_says_what_its_case_says() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&cases)
        .expect("the cases are part of the source")
        .map(|entry| entry.expect("an entry can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let mut different = Vec::new();
    for file in files {
        let expected = std::fs::read_to_string(&file).expect("a case can be read");
        let directory = tempfile::tempdir().expect("a directory");
        let manifest = expected.lines().find_map(|line| line.strip_prefix("# in: "));
        if let Some(manifest) = manifest {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(manifest);
            std::fs::copy(source, directory.path().join("test.toml")).expect("its manifest is there");
        }
        let mut found: String = expected
            .lines()
            .take_while(|line| line.starts_with('#'))
            .fold(String::new(), |all, line| all + line + "\n");
        let commands = expected.lines().filter_map(|line| line.strip_prefix("$ "));
        let parts: Vec<String> = commands.map(|line| run(line, directory.path())).collect();
        found.push_str(&parts.join("\n"));
        if std::env::var_os("ATOLL_BLESS").is_some() {
            std::fs::write(&file, &found).expect("a case can be written");
        } else if found != expected {
            different.push(format!("{} is now:\n{found}", file.display()));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}
