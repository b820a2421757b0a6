//! Paths of the volume as they are typed.
//!
//! * `/a/b`, `a/b` and `a/b/` are the same path; `/` is the root. Parts are checked here, with words for people;
//!   the file system checks them again.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use protocol::fs::{BadPath, NAME_MAX, Name, PATH_MAX, Path};

use crate::output::Failed;

/// A path below the volume's root, without a slash at either end. Empty: the root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumePath(Vec<u8>);

impl VolumePath {
    /// Checks what was typed.
    ///
    /// # Errors
    /// Exit code 2, and which part is wrong.
    pub fn parse(text: &(impl AsRef<OsStr> + ?Sized)) -> Result<VolumePath, Failed> {
        let text = text.as_ref().as_bytes();
        if text.is_empty() {
            return Err(Failed::usage("an empty path names nothing").help("write / for the root"));
        }
        let slash = |byte: &u8| *byte == b'/';
        let begin = text.iter().take_while(|byte| slash(byte)).count();
        let end = text.len() - text[begin..].iter().rev().take_while(|byte| slash(byte)).count();
        let bytes = text[begin..end].to_vec();
        match Path::new(&bytes) {
            Ok(_) => Ok(VolumePath(bytes)),
            Err(bad) => Err(refuse(text, bad)),
        }
    }

    /// The path of `name` in this directory.
    ///
    /// # Errors
    /// Exit code 1: the name is none, or the path becomes too long.
    pub fn join(&self, name: &[u8]) -> Result<VolumePath, Failed> {
        let failed = |bad| Failed { code: 1, ..refuse(&[&b"/"[..], &self.0, b"/", name].concat(), bad) };
        Name::new(name).map_err(failed)?;
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        match Path::new(&bytes) {
            Ok(_) => Ok(VolumePath(bytes)),
            Err(bad) => Err(failed(bad)),
        }
    }

    /// The path as the file system takes it.
    pub fn path(&self) -> Path<'_> {
        Path::new(&self.0).expect("checked when it was made")
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Its last name; nothing for the root.
    pub fn name(&self) -> Option<Name<'_>> {
        let last = self.0.rsplit(|byte| *byte == b'/').next();
        last.and_then(|name| Name::new(name).ok())
    }

    /// The directory above and the name in it; nothing for the root.
    pub fn split(&self) -> Option<(VolumePath, Name<'_>)> {
        let name = self.name()?;
        let above = self.0.len() - name.as_bytes().len();
        Some((VolumePath(self.0[..above.saturating_sub(1)].to_vec()), name))
    }

    /// Whether `other` is this path or below it.
    pub fn contains(&self, other: &VolumePath) -> bool {
        self.is_root()
            || other
                .0
                .strip_prefix(self.0.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
    }
}

/// For people: with the first slash, control characters escaped.
impl fmt::Display for VolumePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "/{}", printable(&self.0))
    }
}

/// A name of the volume for a terminal: UTF-8 stays, control characters and other bytes are escaped.
pub fn printable(bytes: &[u8]) -> String {
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                c if c.is_control() => shown.extend(c.escape_default()),
                c => shown.push(c),
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

fn refuse(text: &[u8], bad: BadPath) -> Failed {
    let shown = printable(text);
    let shown: String =
        if shown.chars().count() > 80 { shown.chars().take(77).chain("...".chars()).collect() } else { shown };
    match bad {
        BadPath::Empty => {
            Failed::usage(format!("{shown}: a part of this path is empty")).help("write one `/` between names")
        }
        BadPath::Dots => Failed::usage(format!("{shown}: `.` and `..` are not names on this volume"))
            .help("write the path from the root, without them"),
        BadPath::Byte => Failed::usage(format!("{shown}: a name cannot contain NUL or `/`")),
        BadPath::TooLong => {
            Failed::usage(format!("{shown}: too long: a name has at most {NAME_MAX} bytes, a path {PATH_MAX}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_at_the_ends_do_not_matter() {
        for same in ["/a/b", "a/b", "a/b/", "/a/b/"] {
            assert_eq!(VolumePath::parse(same).unwrap().0, b"a/b");
        }
        assert!(VolumePath::parse("/").unwrap().is_root());
        assert!(VolumePath::parse("///").unwrap().is_root());
        assert_eq!(VolumePath::parse("/").unwrap().to_string(), "/");
    }

    #[test]
    fn a_path_never_climbs() {
        for bad in ["..", "/..", "a/../b", "./a", "a/.", "a//b", "", "a\0b", &"x".repeat(256)] {
            assert_eq!(VolumePath::parse(bad).unwrap_err().code, 2, "{bad:?}");
        }
    }

    #[test]
    fn a_path_splits_into_directory_and_name() {
        let path = VolumePath::parse("/a/b/c").unwrap();
        let (above, name) = path.split().unwrap();
        assert_eq!((above.to_string().as_str(), name.as_bytes()), ("/a/b", &b"c"[..]));
        assert!(VolumePath::parse("/").unwrap().split().is_none());
        assert_eq!(above.join(b"c").unwrap(), path);
        assert!(above.join(b"..").is_err());
    }

    #[test]
    fn names_are_bytes() {
        let path = VolumePath::parse(OsStr::from_bytes(b"/a/\xff")).unwrap();
        assert_eq!((path.path().as_bytes(), path.to_string().as_str()), (&b"a/\xff"[..], "/a/\\xff"));
    }

    #[test]
    fn containment_ends_at_a_name() {
        let path = |text| VolumePath::parse(text).unwrap();
        assert!(path("/a").contains(&path("/a/b")));
        assert!(path("/a").contains(&path("/a")));
        assert!(!path("/a").contains(&path("/ab")));
        assert!(path("/").contains(&path("/a")));
    }

    #[test]
    fn strange_names_are_shown_without_harm() {
        assert_eq!(printable(b"a\x1b[31m\xffz"), "a\\u{1b}[31m\\xffz");
        assert_eq!(printable("ä\n".as_bytes()), "ä\\n");
    }
}
