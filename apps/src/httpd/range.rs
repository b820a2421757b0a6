//! `Range` fields (RFC 9110 section 14): one range of bytes, or the whole file.

/// What a `Range` field asks for, of a file of known size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Everything: no range, several ranges (a server may ignore those), an unknown unit or a malformed field.
    Whole,
    /// The bytes `first..=last`, both inside the file.
    Part {
        /// Offset of the first byte.
        first: u64,
        /// Offset of the last byte.
        last: u64,
    },
    /// Well-formed, and no byte of the file is in it.
    Unsatisfiable,
}

/// Reads a `Range` field for a file of `size` bytes.
pub fn select(field: &[u8], size: u64) -> Selection {
    parse(field, size).unwrap_or(Selection::Whole)
}

fn parse(field: &[u8], size: u64) -> Option<Selection> {
    let (unit, set) = field.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") || set.contains(&b',') {
        return None;
    }
    let set = set.trim_ascii();
    let dash = set.iter().position(|&byte| byte == b'-')?;
    let (first, last) = (set.get(..dash)?, set.get(dash + 1..)?);
    if first.is_empty() {
        let suffix = number(last)?;
        if suffix == 0 || size == 0 {
            return Some(Selection::Unsatisfiable);
        }
        return Some(Selection::Part { first: size.saturating_sub(suffix), last: size - 1 });
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if first > last {
        return None;
    }
    if first >= size {
        return Some(Selection::Unsatisfiable);
    }
    Some(Selection::Part { first, last: last.min(size - 1) })
}

/// A run of digits; what exceeds 64 bits is beyond the end of any file, as is the largest value.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = char::from(digit).to_digit(10)?;
        Some(value.saturating_mul(10).saturating_add(u64::from(digit)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_a_file_of_ten_bytes() {
        let part = |first, last| Selection::Part { first, last };
        for (field, expected) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=2-5", part(2, 5)),
            ("bytes=2-", part(2, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-10", part(0, 9)),
            ("bytes=-99999999999999999999999", part(0, 9)),
            ("bytes=9-99999999999999999999999", part(9, 9)),
            ("BYTES=0-1", part(0, 1)),
            ("bytes= 0-1 ", part(0, 1)),
            ("bytes=10-", Selection::Unsatisfiable),
            ("bytes=10-20", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=99999999999999999999999-", Selection::Unsatisfiable),
            ("bytes=5-2", Selection::Whole),
            ("bytes=0-1,4-5", Selection::Whole),
            ("bytes=", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=1--2", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("lines=0-1", Selection::Whole),
            ("", Selection::Whole),
        ] {
            assert_eq!(select(field.as_bytes(), 10), expected, "{field}");
        }
    }

    #[test]
    fn an_empty_file_has_no_range() {
        for field in ["bytes=0-", "bytes=0-0", "bytes=-1"] {
            assert_eq!(select(field.as_bytes(), 0), Selection::Unsatisfiable, "{field}");
        }
    }

    proptest! {
        #[test]
        fn a_random_range_is_a_slice(data in proptest::collection::vec(any::<u8>(), 1..300), a in 0usize..400, b in 0usize..400) {
            let size = data.len() as u64;
            let (a, b) = (a.min(b), a.max(b));
            match select(format!("bytes={a}-{b}").as_bytes(), size) {
                Selection::Part { first, last } => {
                    let got = &data[first as usize..=last as usize];
                    prop_assert_eq!(got, &data[a..data.len().min(b + 1)]);
                }
                Selection::Unsatisfiable => prop_assert!(a >= data.len()),
                Selection::Whole => prop_assert!(false, "a well-formed range was ignored"),
            }
        }

        #[test]
        fn whatever_the_field_the_range_is_inside(field in "(bytes=)?[-0-9, a]{0,24}", size in any::<u64>()) {
            if let Selection::Part { first, last } = select(field.as_bytes(), size) {
                prop_assert!(first <= last && last < size);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(field in proptest::collection::vec(any::<u8>(), 0..40), size in any::<u64>()) {
            let _ = select(&field, size);
        }
    }
}
