//! Tokens: what lets one newcomer in.
//!
//! ```text
//! atoll1.NAME.AUTHORITY.SECRET
//!        │    │         └ 16 random bytes, in hexadecimal digits: whoever has them may join
//!        │    └ SHA-256 of the authority's certificate, likewise: whom the newcomer believes
//!        └ the node that has made it, and takes it
//! STATE/node/tokens/HASH        until when it is good; HASH is the SHA-256 of the secret, which is written nowhere
//! STATE/node/tokens/HASH.used   the same, by whom, and the certificate that he has got for it, when it is used up: by this rename
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kernel_ipc::link::socket::keys::{FINGERPRINT_BYTES, NodeName, fingerprint};
use kernel_ipc::sys::random::random_words;
use serde::{Deserialize, Serialize};

use super::files::{self, hex, unhex};
use super::seconds;

/// What every token begins with.
const PREFIX: &str = "atoll1";
/// Bytes of the secret.
const SECRET_BYTES: usize = 16;
/// How long a token is good if nobody says otherwise.
pub const GOOD_FOR: Duration = Duration::from_secs(10 * 60);
/// How long it is remembered what became of a token.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

/// A token as it is handed on. It shows its secret to whoever prints it on purpose, and in no message for debugging.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Who has made it.
    pub node: NodeName,
    /// The fingerprint of the authority's certificate.
    pub authority: [u8; FINGERPRINT_BYTES],
    /// The secret.
    pub secret: Vec<u8>,
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadToken {
    /// It does not begin as tokens do, or has not their four parts.
    Form,
    /// The second part is no name of a node.
    Node,
    /// The third part is no fingerprint.
    Authority,
    /// The fourth part is no secret: perhaps the end was not copied.
    Secret,
}

/// Why a secret lets nobody in.
#[derive(Debug)]
pub enum Refused {
    /// No token has it.
    Unknown,
    /// Somebody has joined with it.
    Used,
    /// It is too old.
    Expired,
    /// What is known of it cannot be read or written.
    Io(io::Error),
}

impl Token {
    /// Reads a token.
    ///
    /// # Errors
    /// See [`BadToken`].
    pub fn parse(text: &str) -> Result<Token, BadToken> {
        let parts: Vec<&str> = text.split('.').collect();
        let [PREFIX, node, authority, secret] = parts[..] else { return Err(BadToken::Form) };
        let node = NodeName::new(node).ok_or(BadToken::Node)?;
        let authority = unhex(authority).and_then(|bytes| bytes.try_into().ok()).ok_or(BadToken::Authority)?;
        let secret = unhex(secret).filter(|secret| secret.len() == SECRET_BYTES).ok_or(BadToken::Secret)?;
        Ok(Token { node, authority, secret })
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", self.node, hex(&self.authority), hex(&self.secret))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("node", &self.node).finish_non_exhaustive()
    }
}

impl std::fmt::Display for BadToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            BadToken::Form => "it does not begin with `atoll1.`, or has not four parts between dots",
            BadToken::Node => "its second part is no name of a node",
            BadToken::Authority => "its third part is no fingerprint of an authority",
            BadToken::Secret => "its fourth part is no secret, perhaps because the end was not copied",
        })
    }
}

impl std::error::Error for BadToken {}

/// The tokens that a node has made.
#[derive(Clone, Debug)]
pub struct Tokens(PathBuf);

/// What is written of one.
#[derive(Serialize, Deserialize)]
struct Written {
    /// Of one that is used up: by whom, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// And what he was given for it, likewise; gone with the member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    until_s: u64,
}

impl Tokens {
    /// Those in this directory.
    pub fn at(directory: PathBuf) -> Tokens {
        Tokens(directory)
    }

    /// Makes a secret that lets one in until `until`. Forgets those that are long past.
    ///
    /// # Errors
    /// Of the system.
    pub fn make(&self, now: SystemTime, until: SystemTime) -> io::Result<Vec<u8>> {
        self.sweep(now)?;
        let secret: Vec<u8> = random_words()?.iter().flat_map(|word| word.to_le_bytes()).take(SECRET_BYTES).collect();
        assert_eq!(secret.len(), SECRET_BYTES, "two words are as long");
        let written = serde_json::to_vec(&Written { by: None, certificate: None, until_s: seconds(until) })?;
        files::write(&self.path(&secret), &written)?;
        Ok(secret)
    }

    /// Whether this secret lets somebody in now.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn check(&self, secret: &[u8], now: SystemTime) -> Result<(), Refused> {
        let path = self.path(secret);
        match read(&path) {
            Ok(written) if written.until_s <= seconds(now) => Err(Refused::Expired),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match used(&path).try_exists() {
                Ok(true) => Err(Refused::Used),
                Ok(false) => Err(Refused::Unknown),
                Err(error) => Err(Refused::Io(error)),
            },
            Err(error) => Err(Refused::Io(error)),
        }
    }

    /// Uses it up, for this certificate. Of several who try it at once, one is let in.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn take(&self, secret: &[u8], by: &[u8], certificate: &[u8], now: SystemTime) -> Result<(), Refused> {
        self.check(secret, now)?;
        let path = self.path(secret);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Refused::Used,
            _ => Refused::Io(error),
        };
        let until_s = read(&path).map_err(failed)?.until_s;
        let written = Written { by: Some(hex(by)), certificate: Some(hex(certificate)), until_s };
        let written = serde_json::to_vec(&written).map_err(|error| Refused::Io(error.into()))?;
        files::write(&path, &written).map_err(Refused::Io)?;
        files::rename(&path, &used(&path)).map_err(failed)
    }

    /// The certificate that this very one was given for a secret that would be good still, unless that was
    /// [taken back](Self::forget).
    ///
    /// # Errors
    /// [`Refused::Io`].
    pub fn given(&self, secret: &[u8], by: &[u8], now: SystemTime) -> Result<Option<Vec<u8>>, Refused> {
        match read(&used(&self.path(secret))) {
            Ok(Written { by: Some(known), certificate: Some(certificate), until_s })
                if until_s > seconds(now) && known == hex(by) =>
            {
                Ok(unhex(&certificate))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Refused::Io(error)),
        }
    }

    /// Whoever was given the certificate with this fingerprint is not let in again: the token is used up, by nobody.
    ///
    /// # Errors
    /// Of the system.
    pub fn forget(&self, of: &[u8]) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let Ok(written) = read(&path) else { continue };
            let certificate = written.certificate.as_deref().and_then(unhex);
            if certificate.is_some_and(|certificate| fingerprint(&certificate) == of) {
                files::write(&path, &serde_json::to_vec(&Written { by: None, certificate: None, ..written })?)?;
            }
        }
        Ok(())
    }

    fn path(&self, secret: &[u8]) -> PathBuf {
        self.0.join(hex(&fingerprint(secret)))
    }

    fn sweep(&self, now: SystemTime) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            let is_past = |written: Written| written.until_s + REMEMBERED.as_secs() <= seconds(now);
            if read(&path).is_ok_and(is_past) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn used(path: &Path) -> PathBuf {
    path.with_extension("used")
}

fn read(path: &Path) -> io::Result<Written> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let node = NodeName::new("first-node").unwrap();
        Token { node, authority: [7; FINGERPRINT_BYTES], secret: vec![0xab; SECRET_BYTES] }
    }

    #[test]
    fn a_token_is_read_as_it_is_written_and_hides_its_secret_from_debugging() {
        let text = token().to_string();
        assert_eq!(Token::parse(&text), Ok(token()));
        assert!(!format!("{:?}", token()).contains("abab"));
        let with = |at: usize, part: &str| {
            let mut parts: Vec<&str> = text.split('.').collect();
            parts[at] = part;
            Token::parse(&parts.join("."))
        };
        assert_eq!(with(0, "atoll2"), Err(BadToken::Form));
        assert_eq!(Token::parse("atoll1.a.b"), Err(BadToken::Form));
        assert_eq!(Token::parse(&format!("{text}.x")), Err(BadToken::Form));
        assert_eq!(with(1, "A"), Err(BadToken::Node));
        assert_eq!(with(2, "00"), Err(BadToken::Authority));
        assert_eq!(with(3, "abab"), Err(BadToken::Secret));
        assert_eq!(Token::parse(&text[..text.len() - 1]), Err(BadToken::Secret));
    }

    #[test]
    fn a_secret_lets_in_one_and_only_while_it_is_good() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(directory.path().into());
        let now = SystemTime::now();
        let secret = tokens.make(now, now + GOOD_FOR).unwrap();
        assert!(matches!(tokens.take(&[0; SECRET_BYTES], b"b", b"c", now), Err(Refused::Unknown)));
        assert!(matches!(tokens.take(&secret, b"b", b"c", now + GOOD_FOR), Err(Refused::Expired)));
        tokens.check(&secret, now).unwrap();
        tokens.take(&secret, b"b", b"c", now).unwrap();
        assert!(matches!(tokens.take(&secret, b"b", b"c", now), Err(Refused::Used)));
        // Who has used it up may ask once more while it would be good, and nobody else.
        let given = |by: &[u8], now| tokens.given(&secret, by, now).unwrap();
        assert_eq!((given(b"b", now), given(b"c", now)), (Some(b"c".to_vec()), None));
        assert_eq!(given(b"b", now + GOOD_FOR), None);
        // Nor when it was removed since.
        tokens.forget(&fingerprint(b"other")).unwrap();
        assert!(given(b"b", now).is_some());
        tokens.forget(&fingerprint(b"c")).unwrap();
        assert_eq!(given(b"b", now), None);
        assert!(matches!(tokens.check(&secret, now), Err(Refused::Used)));
        let written = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(written.into_iter().all(|name| !name.to_string_lossy().contains(&hex(&secret))), "it is written down");
        // What became of it is forgotten some day.
        let later = now + GOOD_FOR + REMEMBERED;
        let other = tokens.make(later, later + GOOD_FOR).unwrap();
        assert!(matches!(tokens.take(&secret, b"b", b"c", later), Err(Refused::Unknown)));
        tokens.take(&other, b"b", b"c", later).unwrap();
    }
}
