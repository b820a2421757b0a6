//! The text of every error that a manifest can get, beside the manifest that gets it.
//!
//! `tests/manifests/NAME.toml` must give exactly `NAME.txt`. After a deliberate change of a text, write the files anew
//! with `ATOLL_BLESS=1 cargo test -p supervisor --test manifest_errors` and read the difference.

use std::path::{Path, PathBuf};

use supervisor::manifest::{EMBEDDED, Manifest, Origin};

fn load_text(text: &str) -> Result<supervisor::manifest::Checked, supervisor::report::Report> {
    Manifest::load(Origin::Text { name: "test.toml", text }, &[])
}

#[test]
fn every_bad_manifest_gets_its_text() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests");
    let mut manifests: Vec<PathBuf> = std::fs::read_dir(&directory)
        .expect("the directory is part of the source")
        .map(|entry| entry.expect("its entries can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    manifests.sort();
    assert!(manifests.len() >= 30, "the examples are missing");
    let mut different = Vec::new();
    for manifest in manifests {
        let name = manifest.file_name().expect("a file").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&manifest).expect("an example can be read");
        let report = Manifest::load(Origin::Text { name: &name, text: &text }, &[])
            .expect_err(&format!("{name} must be refused"));
        let found = report.render(false);
        let expected = manifest.with_extension("txt");
        if std::env::var_os("ATOLL_BLESS").is_some() {
            std::fs::write(&expected, &found).expect("an expectation can be written");
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != found {
            different.push(format!("{name} now gives:\n{found}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn a_file_that_is_absent_is_named() {
    let report = Manifest::load(Origin::Path(Path::new("/no/such.toml")), &[]).unwrap_err();
    assert_eq!(
        report.render(false),
        "error: cannot read the manifest /no/such.toml: there is no such file\n\n1 problem\n"
    );
}

#[test]
fn a_file_that_is_not_text_is_refused_with_the_line() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), b"atoll = 1\n\xff\n").expect("it can be written");
    let report = Manifest::load(Origin::Path(file.path()), &[]).unwrap_err();
    assert!(report.to_string().contains("line 2 is not UTF-8"), "{report}");
}

#[test]
fn a_bad_set_points_into_the_argument() {
    let sets = |text: &str| {
        Manifest::load(Origin::Embedded, &[text.to_string()]).expect_err("it must be refused").render(false)
    };
    let expected = include_str!("manifests/set.expected");
    let found = [
        "httpd.listen",
        "htpd.listen=127.0.0.1:1",
        "httpd.lsten=127.0.0.1:1",
        "httpd.listen=127.0.0.1",
        "disk.create=maybe",
        "fs.cache=1GB",
        "é=é",
    ]
    .map(|set| format!("$ --set {set}\n{}", sets(set)))
    .join("\n");
    if std::env::var_os("ATOLL_BLESS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/set.expected");
        std::fs::write(path, &found).expect("the expectation can be written");
        return;
    }
    assert_eq!(found, expected);
}

#[test]
fn facts_carry_file_line_and_column() {
    let text = EMBEDDED.replace("fs.root", "files.root");
    let facts = load_text(&text).unwrap_err().facts();
    let [fact] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!(fact.file.as_deref(), Some("test.toml"));
    assert_eq!((fact.line, fact.column), (Some(33), Some(22)));
    assert_eq!(fact.message, "there is no component `files`");
}

#[test]
fn several_problems_are_reported_at_once_in_the_order_of_the_text() {
    let text = EMBEDDED.replace("fs.root", "files.root").replace("64MiB", "64MB").replace("atoll.net/1", "atoll.net/9");
    let lines: Vec<_> = load_text(&text).unwrap_err().facts().iter().map(|fact| fact.line).collect();
    assert_eq!(lines, [Some(21), Some(27), Some(33)]);
}
