//! Values of a manifest: sizes, addresses, paths, names. Text in, value or reason out.

use std::net::SocketAddr;

use protocol::fs::{NAME_MAX, PATH_MAX};

/// Bytes of a size such as `64MiB`, `4096` or `1 GiB`.
///
/// # Errors
/// What is wrong with it, and how a size is written.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u32); 6] = [("", 0), ("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    if number.is_empty() {
        return Err("a size is a whole number with a unit, such as \"64MiB\"".into());
    }
    let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        let near = UNITS.iter().find(|(name, _)| {
            !name.is_empty()
                && !unit.is_empty()
                && name[..1].eq_ignore_ascii_case(&unit.chars().next().unwrap_or(' ').to_string())
        });
        return Err(match near {
            Some((name, _)) => format!("unknown unit `{unit}`: write {number}{name}"),
            None => format!("unknown unit `{unit}`: the units are B, KiB, MiB, GiB and TiB"),
        });
    };
    let number: u64 = number.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << shift).ok_or_else(too_large)
}

fn too_large() -> String {
    "this is more than 64 bits of bytes".into()
}

/// The shortest exact way to write a number of bytes.
pub(crate) fn show_size(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// An address to listen on.
///
/// # Errors
/// What is wrong with it, and how an address is written.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Err("the port is missing: write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080".into());
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        if port.parse::<u16>().is_err() {
            return Err(format!("`{port}` is no port: ports are 0 (any free one) to 65535"));
        }
        if host == "localhost" {
            return Err(format!("names are not looked up: write 127.0.0.1:{port}"));
        }
    }
    Err("an address is IP:PORT, such as 127.0.0.1:8080 or [::1]:8080".into())
}

/// Checks a path inside a file system: absolute, no empty, `.` or `..` part, within the limits of `atoll.fs/1`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn absolute_path(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err("the path must start with `/`".into());
    }
    if text.len() > 1 + PATH_MAX {
        return Err(format!("a path has at most {PATH_MAX} bytes"));
    }
    if text.contains('\0') {
        return Err("a path cannot contain NUL".into());
    }
    if text == "/" {
        return Ok(());
    }
    for part in text[1..].split('/') {
        match part {
            "" => return Err("the path has an empty part: no `//`, and no `/` at its end".into()),
            "." | ".." => return Err(format!("`{part}` is not allowed in a path")),
            _ if part.len() > NAME_MAX => return Err(format!("a name has at most {NAME_MAX} bytes")),
            _ => {}
        }
    }
    Ok(())
}

/// Checks the name of a component, use or endpoint.
///
/// # Errors
/// How names are written.
pub(crate) fn name(text: &str) -> Result<(), String> {
    let good = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= 32
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if good {
        Ok(())
    } else {
        Err("names are a-z, 0-9 and `-`, start with a letter, and have at most 32 characters".into())
    }
}

/// The candidate that `word` was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("1 TiB"), Ok(1 << 40));
        assert_eq!(size("4GB").unwrap_err(), "unknown unit `GB`: write 4GiB");
        assert!(size("99999999999999999999").is_err());
        assert!(size("18446744073709551615KiB").is_err());
        assert!(size("-1").is_err());
        assert!(size("4é").is_err());
    }

    #[test]
    fn sizes_are_shown_as_they_are_written() {
        for text in ["4GiB", "64MiB", "3KiB", "1TiB", "4097B", "0B"] {
            assert_eq!(show_size(size(text).unwrap()), text);
        }
    }

    #[test]
    fn a_path_cannot_climb() {
        assert!(absolute_path("/www").is_ok());
        assert!(absolute_path("/").is_ok());
        for bad in ["www", "", "/www/", "//", "/a/../b", "/.", "/a\0b"] {
            assert!(absolute_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        assert_eq!(nearest("liste", ["listen", "path"]), Some("listen"));
        assert_eq!(nearest("zebra", ["listen", "path"]), None);
    }
}
