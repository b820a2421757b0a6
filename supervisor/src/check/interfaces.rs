//! The interfaces that a manifest can name: those of this build, and those that it describes itself.

use kernel_ipc::Rights;

use crate::parse::{Literal, RawInterface, RawValue, Word};
use crate::policy::{self, Narrowing};
use crate::report::Problem;
use crate::value;

/// What a manifest's checks need to know of an interface.
pub(super) struct Interface {
    /// Name and version.
    pub name: String,
    /// The names of its rights.
    pub rights: Vec<(String, Rights)>,
    /// What a use of it may be narrowed by.
    pub narrowing: Option<Narrowing>,
}

/// All of them.
pub(super) struct Interfaces(Vec<Interface>);

impl Interfaces {
    /// Those of this build, and those that are described well.
    pub fn of(described: &[RawInterface], problems: &mut Vec<Problem>) -> Interfaces {
        let built_in = policy::interfaces().into_iter().map(|known| Interface {
            name: known.name.into(),
            rights: known.rights.iter().map(|(name, right)| ((*name).into(), *right)).collect(),
            narrowing: policy::narrowing(known),
        });
        let mut all = Interfaces(built_in.collect());
        for raw in described {
            match own(raw, &all) {
                Ok(interface) => all.0.extend(interface),
                Err(problem) => problems.push(problem),
            }
        }
        all
    }

    /// By name with version.
    pub fn find(&self, name: &str) -> Option<&Interface> {
        self.0.iter().find(|interface| interface.name == name)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|interface| interface.name.as_str())
    }
}

/// One that the manifest describes; `None`: as this build has it.
fn own(raw: &RawInterface, known: &Interfaces) -> Result<Option<Interface>, Problem> {
    let (name, shown) = (&raw.name, raw.name.text.escape_debug());
    if !is_versioned(&name.text) {
        let title = format!("`{shown}` is no interface's name");
        let help = "an interface is called FAMILY.NAME/VERSION, such as \"example.counter/1\"";
        return Err(Problem::at(&name.place, title, "no name with a version").help(help));
    }
    let mut rights: Vec<(String, Rights)> = Vec::new();
    for (right, given) in &raw.rights {
        let bit = bit(right, given)?;
        if let Some((other, _)) = rights.iter().find(|(_, taken)| *taken == bit) {
            let title = format!("rights `{other}` and `{}` of {shown} are the same bit", right.text);
            return Err(Problem::at(&given.place, title, "taken already"));
        }
        rights.push((right.text.clone(), bit));
    }
    let is_same =
        |of: &Interface| of.rights.len() == rights.len() && rights.iter().all(|right| of.rights.contains(right));
    match known.find(&name.text) {
        Some(built_in) if is_same(built_in) => Ok(None),
        Some(_) => {
            let title = format!("this build has `{shown}`, with other rights");
            Err(Problem::at(&name.place, title, "described otherwise"))
        }
        None => Ok(Some(Interface { name: name.text.clone(), rights, narrowing: None })),
    }
}

/// `family.name/version`, by the rule of `#[interface]`.
fn is_versioned(name: &str) -> bool {
    let word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    // 64 bytes: as much as a greeting over a socket has room for (kernel-ipc, `link/socket/frame.rs`).
    name.len() <= 64
        && name.split_once('/').is_some_and(|(path, version)| {
            path.contains('.')
                && path.split('.').all(word)
                && version.parse::<u32>().is_ok_and(|number| number > 0 && number.to_string() == version)
        })
}

/// Which right a name stands for.
fn bit(name: &Word, given: &RawValue) -> Result<Rights, Problem> {
    let bad = |label: String| Problem::at(&given.place, format!("bad right `{}`", name.text.escape_debug()), label);
    if let Err(reason) = value::name(&name.text.replace('_', "-")) {
        return Err(Problem::at(&name.place, format!("bad right `{}`", name.text.escape_debug()), reason));
    }
    let generic = [("read", Rights::READ), ("write", Rights::WRITE), ("grant", Rights::GRANT), ("map", Rights::MAP)];
    let number = match &given.literal {
        Literal::Integer(Some(number @ 0..=31)) => *number as u32,
        _ => return Err(bad("a right is a bit: 0 to 3 for read, write, grant and map, 8 to 31 for its own".into())),
    };
    let right = Rights::from_bits_retain(1 << number);
    match generic.iter().find(|(generic, of)| *generic == name.text || *of == right) {
        Some((generic, of)) if *generic == name.text && *of == right => Ok(right),
        Some((generic, of)) => {
            Err(bad(format!("`{generic}` is bit {} of every interface", of.bits().trailing_zeros())))
        }
        None if number >= Rights::FIRST_OF_INTERFACE => Ok(right),
        None => Err(bad("an interface's own rights are bits 8 to 31".into())),
    }
}
