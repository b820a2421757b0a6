//! Request targets: from the bytes on the request line to a path below the served directory.
//!
//! * A [`Path`] is relative, has no empty, `.` or `..` component, no NUL, and nothing in it came from an encoded slash: what
//!   it names is at or below the served directory, whoever reads it.
//! * `.` and `..` are resolved here; a `..` that would leave the root is refused, not clamped.

use super::status::Status;

/// Longest component of a path that the file system can have.
const MAX_COMPONENT_BYTES: usize = 255;
/// Longest path that the file-system interface takes.
const MAX_PATH_BYTES: usize = protocol::fs::PATH_MAX;

/// A normalised path below the served directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    bytes: Vec<u8>,
    directory: bool,
}

impl Path {
    /// Components joined by `/`, without one at either end; empty for the served directory itself.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The target ended in `/`: it asks for a directory.
    pub fn is_directory(&self) -> bool {
        self.directory
    }

    /// The path of `name` in the directory that this path names.
    pub fn join(&self, name: &[u8]) -> Path {
        let mut bytes = self.bytes.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Path { bytes, directory: false }
    }

    /// The absolute target of this path as a directory (`/a%20b/`), percent-encoded for a `Location` field.
    pub fn directory_target(&self) -> String {
        const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
        let mut target = String::with_capacity(self.bytes.len() + 2);
        target.push('/');
        for &byte in &self.bytes {
            // The unreserved characters of RFC 3986 section 2.3, and the separator.
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                target.push(char::from(byte));
            } else {
                target.push('%');
                target.push(HEX[usize::from(byte >> 4)]);
                target.push(HEX[usize::from(byte & 15)]);
            }
        }
        if !self.bytes.is_empty() {
            target.push('/');
        }
        target
    }
}

/// Makes a path of a request target: origin form (`/a/b?query`) or absolute form (`http://host/a/b`).
///
/// # Errors
/// `BadRequest` for any other form, a bad or forbidden encoding (`%2F`, `%00`) and a `..` above the root; `NotFound` for
/// a component that no file can have; `UriTooLong` for a path that none can have.
pub fn parse(target: &[u8]) -> Result<Path, Status> {
    let path = origin_form(target)?;
    let path = path.split(|&byte| byte == b'?').next().unwrap_or(path);
    let mut bytes = Vec::with_capacity(path.len());
    let mut directory = true;
    for raw in path.split(|&byte| byte == b'/').skip(1) {
        let component = decode(raw)?;
        directory = false;
        match component.as_slice() {
            b"" | b"." => directory = true,
            b".." => {
                if bytes.is_empty() {
                    return Err(Status::BadRequest);
                }
                let parent = bytes.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                bytes.truncate(parent);
                directory = true;
            }
            name => {
                if name.len() > MAX_COMPONENT_BYTES {
                    return Err(Status::NotFound);
                }
                if !bytes.is_empty() {
                    bytes.push(b'/');
                }
                bytes.extend_from_slice(name);
            }
        }
    }
    if bytes.len() > MAX_PATH_BYTES {
        return Err(Status::UriTooLong);
    }
    Ok(Path { bytes, directory })
}

/// The part from the first slash of the path on.
fn origin_form(target: &[u8]) -> Result<&[u8], Status> {
    if target.contains(&b'#') {
        return Err(Status::BadRequest);
    }
    if target.first() == Some(&b'/') {
        return Ok(target);
    }
    for scheme in [b"http://".as_slice(), b"https://"] {
        let Some((head, rest)) = target.split_at_checked(scheme.len()) else {
            continue;
        };
        if head.eq_ignore_ascii_case(scheme) {
            return match rest.iter().position(|&byte| byte == b'/' || byte == b'?') {
                Some(0) => Err(Status::BadRequest), // no authority
                Some(at) if rest.get(at) == Some(&b'/') => Ok(rest.get(at..).unwrap_or_default()),
                _ if rest.is_empty() => Err(Status::BadRequest),
                _ => Ok(b"/"),
            };
        }
    }
    Err(Status::BadRequest)
}

/// Percent-decodes one component.
fn decode(raw: &[u8]) -> Result<Vec<u8>, Status> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter().copied();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let high = bytes.next().and_then(hex).ok_or(Status::BadRequest)?;
            let low = bytes.next().and_then(hex).ok_or(Status::BadRequest)?;
            let decoded = high << 4 | low;
            // A separator that was no separator when the path was split would be one for the file system.
            if decoded == b'/' {
                return Err(Status::BadRequest);
            }
            decoded
        } else {
            byte
        };
        if byte == 0 {
            return Err(Status::BadRequest);
        }
        out.push(byte);
    }
    Ok(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(target: &str) -> Result<(String, bool), u16> {
        match parse(target.as_bytes()) {
            Ok(path) => Ok((String::from_utf8_lossy(path.as_bytes()).into_owned(), path.is_directory())),
            Err(status) => Err(status.code()),
        }
    }

    fn found(text: &str, directory: bool) -> Result<(String, bool), u16> {
        Ok((text.to_owned(), directory))
    }

    #[test]
    fn targets_become_normal_paths() {
        for (target, expected) in [
            ("/", found("", true)),
            ("/a", found("a", false)),
            ("/a/", found("a", true)),
            ("//a///b", found("a/b", false)),
            ("/a/./b/.", found("a/b", true)),
            ("/a/../b", found("b", false)),
            ("/a/b/..", found("a", true)),
            ("/a/..", found("", true)),
            ("/a%20b?x=/../y", found("a b", false)),
            ("/%61%2e%2E", found("a..", false)),
            ("/a?", found("a", false)),
            ("http://host/a/b", found("a/b", false)),
            ("HTTP://host:80/a?b", found("a", false)),
            ("http://host", found("", true)),
            ("http://host?q=/a", found("", true)),
            ("/...", found("...", false)),
        ] {
            assert_eq!(path(target), expected, "{target}");
        }
    }

    #[test]
    fn targets_that_escape_or_hide_are_refused() {
        for target in [
            "",
            "*",
            "a",
            "host:80",
            "/..",
            "/../a",
            "/a/../../b",
            "/%2e%2e/a",
            "/.%2E/",
            "/a%2fb",
            "/a%2Fb",
            "/%00",
            "/a%",
            "/a%4",
            "/a%zz",
            "http://",
            "http:///a",
            "ftp://host/a",
            "/a#b",
            "/\0",
        ] {
            assert_eq!(path(target), Err(400), "{target}");
        }
    }

    #[test]
    fn what_no_file_system_can_hold_is_not_asked_for() {
        assert_eq!(path(&format!("/{}", "a".repeat(256))), Err(404));
        assert!(path(&format!("/{}", "a".repeat(255))).is_ok());
        assert_eq!(path(&"/abcdefg".repeat(600)), Err(414));
    }

    #[test]
    fn a_location_is_encoded_and_reads_back() {
        let asked = parse(b"/a%20b/%0d%0ax").unwrap();
        assert_eq!(asked.directory_target(), "/a%20b/%0D%0Ax/");
        assert_eq!(parse(asked.directory_target().as_bytes()).unwrap().as_bytes(), asked.as_bytes());
        assert_eq!(parse(b"/").unwrap().directory_target(), "/");
    }

    proptest! {
        #[test]
        fn no_target_makes_a_path_that_leaves_the_root(target in proptest::collection::vec(any::<u8>(), 0..64)) {
            check(&target)?;
        }

        #[test]
        fn no_mixture_of_dots_slashes_and_escapes_leaves_the_root(parts in proptest::collection::vec("(\\.|/|%2e|%2E|%2f|%00|a|\\?|%25)", 0..24)) {
            check(format!("/{}", parts.concat()).as_bytes())?;
        }
    }

    fn check(target: &[u8]) -> Result<(), TestCaseError> {
        if let Ok(path) = parse(target) {
            let bytes = path.as_bytes();
            prop_assert!(!bytes.contains(&0));
            if !bytes.is_empty() {
                for component in bytes.split(|&byte| byte == b'/') {
                    prop_assert!(!matches!(component, b"" | b"." | b".."));
                }
            }
            let again = parse(path.directory_target().as_bytes());
            prop_assert_eq!(again.map(|again| again.as_bytes().to_vec()), Ok(bytes.to_vec()));
        }
        Ok(())
    }
}
