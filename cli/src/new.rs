//! `atoll new component`: a component and its client, to build, run and change.
//!
//! The sources are the example of the book, `kernel-ipc/examples/{counter,count}`, with the names that others see
//! replaced; the manifest is what that program prints of itself. So what is written is what the tests run.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::args::Common;
use crate::init::{self, cannot, write_new};
use crate::output::{self, Align, Failed, Table};

#[path = "../../kernel-ipc/examples/counter/interface.rs"]
mod example;

const INTERFACE: &str = include_str!("../../kernel-ipc/examples/counter/interface.rs");
const COMPONENT: &str = include_str!("../../kernel-ipc/examples/counter/main.rs");
const CLIENT: &str = include_str!("../../kernel-ipc/examples/count.rs");

/// Where this program was built from.
const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A file of the new directory.
struct Made {
    path: String,
    what: &'static str,
    text: String,
}

/// Makes a directory `name` with a Cargo project that is built with the kit in the checkout `kit`.
pub fn component(common: &Common, name: &str, kit: Option<&Path>) -> Result<(), Failed> {
    is_name(name)?;
    let kit = kit.map_or_else(|| PathBuf::from(CHECKOUT), Path::to_owned);
    let kit = kit.canonicalize().ok().filter(|kit| kit.join("kernel-ipc/Cargo.toml").is_file()).ok_or_else(|| {
        let missing = Failed::new(format!("{} is no checkout of Atoll: kernel-ipc is not there", kit.display()));
        missing.help("a component is built with the kit's sources; --kit DIR names a checkout of them")
    })?;
    let Some(place) = kit.to_str().filter(|path| !path.contains(['"', '\\'])) else {
        return Err(Failed::new(format!("{}: cargo could not be told this path", kit.display())));
    };
    let mut files = files(name, place);
    // The same versions of everything: they are there, and known to work. Without it cargo finds some itself.
    if let Ok(lock) = fs::read_to_string(kit.join("Cargo.lock")) {
        files.push(Made { path: "Cargo.lock".into(), what: "with the kit's versions of everything", text: lock });
    }
    let directory = Path::new(name);
    fs::create_dir(directory).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failed::new(format!("{name} is there already, and is left as it is")),
        _ => cannot("make", directory, &error),
    })?;
    for Made { path, text, .. } in &files {
        let path = directory.join(path);
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).map_err(|error| cannot("make", above, &error))?;
        }
        write_new(&path, text)?;
    }
    let files: Vec<(String, &str)> = files.iter().map(|made| (format!("{name}/{}", made.path), made.what)).collect();
    if common.json {
        let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
        return output::json(&json!({ "component": name, "files": paths, "kit": kit }));
    }
    let mut table = Table::new(&[("file", Align::Left), ("what it is", Align::Left)]);
    files.into_iter().for_each(|(path, what)| table.row(vec![path, what.into()]));
    output::write(table.render(output::stdout_colours()).as_bytes())?;
    output::line(&format!("\nbuild and start it: cd {name} && cargo build --release && atoll up --detach"))?;
    output::line(&format!("call it: target/release/{name}-client atoll-state 2"))
}

/// Checks that the name is one of a component, an interface and a Cargo package.
fn is_name(name: &str) -> Result<(), Failed> {
    let is_good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 32
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    match is_good {
        true => Ok(()),
        false => {
            Err(Failed::usage(format!("{} cannot be the name of a component and its interface", name.escape_debug()))
                .help("names are a-z and `-`, start with a letter, and have at most 32 characters"))
        }
    }
}

/// What is made.
fn files(name: &str, kit: &str) -> Vec<Made> {
    let made = |path: &str, what, text| Made { path: path.into(), what, text };
    let component = COMPONENT
        .replace("`counter --manifest > counter.toml; atoll up counter.toml`", "`cargo build --release; atoll up`")
        .replace("cx.provide(\"counter\"", &format!("cx.provide(\"{name}\""))
        .replace("example.counter/1", &format!("example.{name}/1"));
    let client = CLIENT
        .replace("`count STATE N`", &format!("`{name}-client STATE N`"))
        .replace("usage: count STATE N", &format!("usage: {name}-client STATE N"))
        .replace("counter/interface.rs", "../interface.rs")
        .replace("\"count\"", &format!("\"{name}-client\""))
        .replace("\"counter.counter\"", &format!("\"{name}.{name}\""));
    vec![
        made("Cargo.toml", "how it is built, with the kit of this checkout", cargo(name, kit)),
        made(init::MANIFEST, "a system of it alone, to start and to change", manifest(name)),
        made("src/interface.rs", "what it and its clients agree on", {
            INTERFACE.replace("example.counter/1", &format!("example.{name}/1"))
        }),
        made("src/main.rs", "the component", component),
        made(&format!("src/bin/{name}-client.rs"), "a client of it", client),
        made(".gitignore", "what is not to be kept", "/target\n/atoll-state\n".into()),
    ]
}

fn cargo(name: &str, kit: &str) -> String {
    let (rust, kit) = (env!("CARGO_PKG_RUST_VERSION"), format!("{kit}/kernel-ipc"));
    format!(
        r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"
rust-version = "{rust}"
publish = false

[dependencies]
kernel-ipc = {{ path = "{kit}" }}
serde = {{ version = "1", features = ["derive"] }}

# It is no part of a workspace above it.
[workspace]
"#
    )
}

fn manifest(name: &str) -> String {
    let head = "# `atoll up` in this directory starts it. docs/components.md says what there is to add.\n";
    let text = kernel_ipc::component::manifest("target/release/counter", &[&example::DESCRIPTION]);
    head.to_owned() + &text.replace("counter", name) + "config = { start = 40 }\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use supervisor::manifest::{Manifest, Origin};

    fn text(files: &[Made], path: &str) -> String {
        files.iter().find(|made| made.path == path).unwrap_or_else(|| panic!("no {path}")).text.clone()
    }

    #[test]
    fn everything_that_others_see_has_the_new_name() {
        let files = files("ledger", "/kit");
        let (component, client) = (text(&files, "src/main.rs"), text(&files, "src/bin/ledger-client.rs"));
        for part in ["cx.provide(\"ledger\"", "`example.ledger/1`", "`cargo build --release; atoll up`"] {
            assert!(component.contains(part), "no {part} in {component}");
        }
        let parts = ["\"../interface.rs\"", "guest(Path::new(state), \"ledger-client\")", "\"ledger.ledger\""];
        for part in parts.iter().chain(&["`ledger-client STATE N`", "usage: ledger-client STATE N"]) {
            assert!(client.contains(part), "no {part} in {client}");
        }
        assert!(text(&files, "src/interface.rs").contains("#[interface(\"example.ledger/1\")]"));
        for made in &files {
            for old in ["example.counter", "\"counter", "counter.toml", "`count ", "\"count\""] {
                assert!(!made.text.contains(old), "{old} in {}", made.text);
            }
            assert!(!made.path.ends_with(".rs") || made.text.lines().count() < 60, "{} is long", made.path);
        }
    }

    #[test]
    fn the_manifest_is_good_and_says_what_the_program_would() {
        let text = manifest("ledger");
        let checked = Manifest::load(Origin::Text { name: "atoll.toml", text: &text }, &[]);
        // A relative path: a text is in no directory.
        let problems = checked.expect_err("it has no directory").facts();
        assert_eq!(problems.len(), 1, "{problems:?}");
        let text = text.replace("program:target", "program:/target");
        let checked = Manifest::load(Origin::Text { name: "atoll.toml", text: &text }, &[]).expect("it is good");
        assert_eq!(checked.components[0].provides[0].interface, "example.ledger/1");
    }

    #[test]
    fn a_name_is_one_of_everything_that_it_names() {
        for bad in ["", "Ledger", "9", "a/b", "..", "two words", "é", "cache2", &"a".repeat(33)] {
            assert_eq!(is_name(bad).map_err(|failed| failed.code), Err(output::USAGE), "{bad:?}");
        }
        for good in ["a", "key-value", &"a".repeat(32)] {
            assert_eq!(is_name(good), Ok(()), "{good}");
        }
    }
}
