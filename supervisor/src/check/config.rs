//! Configuration values: what a field of a built-in makes of what the manifest says.

use serde_json::{Value, json};

use crate::parse::{Literal, RawValue};
use crate::policy::{Field, Kind};
use crate::value;

/// The value of a field as it is handed to the component.
pub(super) fn meaning(field: &Field, given: &RawValue) -> Result<Value, String> {
    match (field.kind, &given.literal) {
        (Kind::Size { least, most }, literal) => {
            let bytes = match literal {
                Literal::Text(text) => value::size(text)?,
                Literal::Integer(Some(bytes)) => *bytes,
                Literal::Integer(None) => return Err("a size cannot be negative".into()),
                Literal::Flag(_) => return Err(expected(field.kind, "true or false")),
                Literal::Other(found) => return Err(expected(field.kind, found)),
            };
            if bytes < least {
                return Err(format!("the smallest possible is {}", value::show_size(least)));
            }
            if bytes > most {
                return Err(format!("the largest possible is {}", value::show_size(most)));
            }
            if !bytes.is_multiple_of(4096) {
                return Err("this is not a multiple of 4KiB".into());
            }
            Ok(json!(bytes))
        }
        (Kind::Count { least, most }, literal) => {
            let number = match literal {
                Literal::Integer(Some(number)) => *number,
                Literal::Text(text) if given.set => text.parse().map_err(|_| expected(field.kind, "text"))?,
                Literal::Integer(None) => return Err("this cannot be negative".into()),
                Literal::Text(_) => return Err(expected(field.kind, "text")),
                Literal::Flag(_) => return Err(expected(field.kind, "true or false")),
                Literal::Other(found) => return Err(expected(field.kind, found)),
            };
            if !(least..=most).contains(&number) {
                return Err(format!("this must be from {least} to {most}"));
            }
            Ok(json!(number))
        }
        (Kind::Address, Literal::Text(text)) => value::address(text).map(|address| json!(address.to_string())),
        (Kind::HostPath, Literal::Text(text)) => match text.as_str() {
            "" => Err("the path is empty".into()),
            text if text.contains('\0') => Err("a path cannot contain NUL".into()),
            text if text.ends_with('/') => Err("this is a directory's name".into()),
            text => Ok(json!(text)),
        },
        (Kind::Flag, Literal::Flag(flag)) => Ok(json!(flag)),
        (Kind::Flag, Literal::Text(text)) if given.set && (text == "true" || text == "false") => {
            Ok(json!(text == "true"))
        }
        (kind, Literal::Text(_)) => Err(expected(kind, "text")),
        (kind, Literal::Integer(_)) => Err(expected(kind, "a number")),
        (kind, Literal::Flag(_)) => Err(expected(kind, "true or false")),
        (kind, Literal::Other(found)) => Err(expected(kind, found)),
    }
}

/// The value as the manifest says it, for a program that this build knows nothing of.
pub(super) fn any(given: &RawValue) -> Result<Value, String> {
    match &given.literal {
        // Nobody has said what it should be: what is written as a number is one.
        Literal::Text(text) if given.set => Ok(match (text.parse::<bool>(), text.parse::<u64>()) {
            (Ok(flag), _) => json!(flag),
            (_, Ok(number)) if number.to_string() == *text => json!(number),
            _ => json!(text),
        }),
        Literal::Text(text) => Ok(json!(text)),
        Literal::Integer(Some(number)) => Ok(json!(number)),
        Literal::Integer(None) => Err("this cannot be negative".into()),
        Literal::Flag(flag) => Ok(json!(flag)),
        Literal::Other(found) => Err(format!("this is {found}, not text, a whole number, true or false")),
    }
}

fn expected(kind: Kind, found: &str) -> String {
    let wanted = match kind {
        Kind::Size { .. } => "a size such as \"64MiB\"",
        Kind::Count { .. } => "a whole number",
        Kind::Address => "an address such as \"127.0.0.1:8080\"",
        Kind::HostPath => "a path in quotes",
        Kind::Flag => "true or false",
    };
    format!("this is {found}, not {wanted}")
}

pub(super) fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Size { .. } => "\"64MiB\"",
        Kind::Count { .. } => "60",
        Kind::Address => "\"127.0.0.1:8080\"",
        Kind::HostPath => "\"disk.img\"",
        Kind::Flag => "true",
    }
}
