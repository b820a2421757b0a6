//! A program of one's own as a component: `run = "program:PATH"`.

use std::fmt::Write;
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;

use super::{Context, Error, run};
use crate::interface::Description;

/// The `main` of a component that is a program of its own and serves these interfaces. Started by a supervisor it [runs](run); somebody who
/// starts it with `--manifest` gets a manifest to begin with, and anybody else is told so.
pub fn program<F, R>(interfaces: &[&'static Description], serve: F) -> ExitCode
where
    F: FnOnce(Context) -> R,
    R: Future<Output = Result<(), Error>>,
{
    match std::env::args().nth(1).as_deref() {
        None => run(serve),
        Some("--manifest") => match std::env::current_exe().ok().as_ref().and_then(|path| path.to_str()) {
            Some(path) => {
                print!("{}", manifest(path, interfaces));
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("error: where this program is cannot be said in UTF-8");
                ExitCode::FAILURE
            }
        },
        Some(other) => {
            eprintln!("error: unknown argument {other}: --manifest prints a manifest for `atoll up`");
            ExitCode::from(2)
        }
    }
}

/// The manifest of a system of one component, which is the program at this path and serves these interfaces.
pub fn manifest(path: &str, interfaces: &[&Description]) -> String {
    let mut text = String::from("atoll = 1\n");
    for interface in interfaces {
        let rights = interface.rights.iter().map(|(name, right)| format!("{name} = {}", right.bits().trailing_zeros()));
        let rights = rights.collect::<Vec<_>>().join(", ");
        let _ = write!(text, "\n[interface.\"{}\"]\nrights = {{ {rights} }}\n", interface.name);
    }
    let name = word(&Path::new(path).file_stem().unwrap_or_default().to_string_lossy());
    // As TOML writes it.
    let path = path.replace('\\', "\\\\").replace('"', "\\\"");
    let _ = write!(text, "\n[component.{name}]\nrun = \"program:{path}\"\n");
    let mut endpoints: Vec<String> = Vec::new();
    for interface in interfaces {
        let family = interface.name.split('/').next().unwrap_or_default();
        let mut endpoint = word(family.rsplit('.').next().unwrap_or_default());
        if endpoints.contains(&endpoint) {
            endpoint = format!("{endpoint}-{}", endpoints.len() + 1);
        }
        let _ = writeln!(text, "provides.{endpoint} = \"{}\"", interface.name);
        endpoints.push(endpoint);
    }
    text
}

/// What a manifest takes for a name, as near to this as can be.
fn word(text: &str) -> String {
    let known = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_lowercase() || c.is_ascii_digit() => c,
        _ => '-',
    };
    let word: String = text.chars().map(known).skip_while(|c| !c.is_ascii_lowercase()).take(32).collect();
    if word.is_empty() { "program".into() } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rights;
    use crate::described::Details;

    #[test]
    fn a_program_describes_a_system_of_itself() {
        const COUNTER: Description = Description {
            name: "example.counter/1",
            kinds: &["Count"],
            rights: &[("read", Rights::READ), ("add", Rights::of_interface(0))],
            operations: &[],
            details: Details::none,
        };
        let expected = r#"atoll = 1

[interface."example.counter/1"]
rights = { read = 0, add = 8 }

[interface."other.counter/2"]
rights = { read = 0, add = 8 }

[component.my-counter]
run = "program:/opt/\"quoted\"/7My_Counter.bin"
provides.counter = "example.counter/1"
provides.counter-2 = "other.counter/2"
"#;
        let other = Description { name: "other.counter/2", ..COUNTER };
        assert_eq!(manifest("/opt/\"quoted\"/7My_Counter.bin", &[&COUNTER, &other]), expected);
        assert_eq!([word("12"), word("Ünder_score")], ["program", "nder-score"].map(String::from));
    }
}
