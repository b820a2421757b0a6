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
        Some("--manifest") => match std::env::current_exe() {
            Ok(path) => {
                print!("{}", manifest(&path, interfaces));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: where this program is: {error}");
                ExitCode::FAILURE
            }
        },
        Some(other) => {
            eprintln!("error: unknown argument {other}: --manifest prints a manifest for `atoll up`");
            ExitCode::from(2)
        }
    }
}

/// A system of one component that is this program.
fn manifest(path: &Path, interfaces: &[&Description]) -> String {
    let mut text = String::from("atoll = 1\n");
    for interface in interfaces {
        let rights = interface.rights.iter().map(|(name, right)| format!("{name} = {}", right.bits().trailing_zeros()));
        let rights = rights.collect::<Vec<_>>().join(", ");
        let _ = write!(text, "\n[interface.\"{}\"]\nrights = {{ {rights} }}\n", interface.name);
    }
    let name = word(&path.file_stem().unwrap_or_default().to_string_lossy());
    let _ = write!(text, "\n[component.{name}]\nrun = \"program:{}\"\n", path.display());
    for interface in interfaces {
        let family = interface.name.split('/').next().unwrap_or_default();
        let endpoint = word(family.rsplit('.').next().unwrap_or_default());
        let _ = writeln!(text, "provides.{endpoint} = \"{}\"", interface.name);
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
        let expected = "atoll = 1\n\n[interface.\"example.counter/1\"]\nrights = { read = 0, add = 8 }\n\n\
             [component.my-counter]\nrun = \"program:/opt/7My_Counter.bin\"\nprovides.counter = \"example.counter/1\"\n";
        assert_eq!(manifest(Path::new("/opt/7My_Counter.bin"), &[&COUNTER]), expected);
        assert_eq!([word("12"), word("Ünder_score")], ["program", "nder-score"].map(String::from));
    }
}
