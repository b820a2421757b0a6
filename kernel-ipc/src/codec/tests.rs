use proptest::prelude::*;

use super::*;
use crate::id::LenderId;
use crate::interface::{LeasePart, Wire};
use crate::rights::Rights;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
#[repr(u8)]
enum Colour {
    Red = 1,
    Blue = 7,
}

#[derive(Clone, Debug, PartialEq, Eq, Wire)]
struct Item {
    number: u16,
    name: String,
    colour: Colour,
    more: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
struct Borrowed<'a> {
    number: u64,
    bytes: &'a [u8],
}

type Everything = ((u64, i64, bool, Rights), (String, Vec<u8>), Vec<Item>, Option<String>);

fn bytes_of<T: Encode>(value: &T) -> Vec<u8> {
    Encoder::of(value).payload().to_vec()
}

fn item(name: &str, more: Option<u32>) -> Item {
    Item { number: 0x0102, name: name.into(), colour: Colour::Blue, more }
}

#[test]
fn a_payload_is_the_fixed_part_and_then_the_tail() {
    let payload = bytes_of(&("ab", Rights::from_bits_retain(5), "c"));
    assert_eq!(payload, [2, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, b'a', b'b', b'c']);
}

#[test]
fn an_element_of_a_list_has_a_fixed_part_of_its_own_in_the_tail() {
    let payload = bytes_of(&(vec![item("x", None), item("yz", Some(9))], true));
    #[rustfmt::skip]
    assert_eq!(payload, [
        2, 0, 0, 0, 1,
        2, 1, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, b'x',
        2, 1, 2, 0, 0, 0, 7, 1, 9, 0, 0, 0, b'y', b'z',
    ]);
    assert_eq!(Decoder::whole(&payload), Ok((vec![item("x", None), item("yz", Some(9))], true)));
}

#[test]
fn a_derived_struct_is_its_fields_in_order() {
    let value = Borrowed { number: 3, bytes: b"abc" };
    let payload = bytes_of(&value);
    assert_eq!(payload, [3, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, b'a', b'b', b'c']);
    assert_eq!(Decoder::whole(&payload), Ok(value));
}

#[test]
fn a_call_of_few_scalars_fits_into_the_descriptor() {
    assert!(bytes_of(&(1u64, 2u32)).len() <= crate::wire::INLINE_BYTES);
    assert!(bytes_of(&("a/b.html", Rights::READ)).len() <= crate::wire::INLINE_BYTES);
}

#[test]
fn whatever_is_cut_off_left_over_or_impossible_is_malformed() {
    let whole = bytes_of(&(vec![item("x", Some(1))], true));
    for end in 0..whole.len() {
        assert_eq!(Decoder::whole::<(Vec<Item>, bool)>(&whole[..end]), Err(Malformed), "cut at {end}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert_eq!(Decoder::whole::<(Vec<Item>, bool)>(&longer), Err(Malformed));

    assert_eq!(Decoder::whole::<bool>(&[2]), Err(Malformed));
    assert_eq!(Decoder::whole::<Colour>(&[2]), Err(Malformed));
    assert_eq!(Decoder::whole::<String>(&[1, 0, 0, 0, 0xff]), Err(Malformed));
    assert_eq!(Decoder::whole::<Option<u8>>(&[0, 1]), Err(Malformed), "a value that is not there is zero");
}

#[test]
fn a_lying_count_allocates_nothing() {
    let mut payload = u32::MAX.to_le_bytes().to_vec();
    payload.extend([0; 8]);
    assert_eq!(Decoder::whole::<Vec<u64>>(&payload), Err(Malformed));
    assert_eq!(Decoder::whole::<Vec<Item>>(&payload), Err(Malformed));
    assert_eq!(Decoder::whole::<Vec<u8>>(&payload), Err(Malformed));
    assert_eq!(Decoder::whole::<&str>(&payload), Err(Malformed));
}

#[test]
fn a_part_beyond_its_lease_is_malformed() {
    let name = LeaseName { lender: LenderId(1), index: 2, generation: 3, length: 100 };
    let decode = |part: LeasePart, names: &[LeaseName]| {
        let payload = bytes_of(&part);
        let mut decoder = Decoder::new(LeasePart::FIXED_BYTES, &payload).expect("whole").with_leases(names);
        let part = LeasePart::decode(&mut decoder)?;
        decoder.finish()?;
        Ok(part)
    };
    let good = LeasePart { name, offset: 60, length: 40 };
    assert_eq!(decode(good, &[name]), Ok(good));
    assert_eq!(decode(LeasePart { length: 41, ..good }, &[name]), Err(Malformed));
    assert_eq!(decode(LeasePart { offset: u64::MAX, ..good }, &[name]), Err(Malformed));
    assert_eq!(decode(good, &[]), Err(Malformed), "a lease that did not come");
    assert_eq!(decode(good, &[name, name]), Err(Malformed), "a lease that nobody asked for");
    assert_eq!(Encoder::of(&good).leases(), [name]);
}

#[test]
fn a_part_is_cut_at_the_end_of_its_lease() {
    let name = LeaseName { lender: LenderId(1), index: 2, generation: 3, length: 100 };
    let part = |range: LeasePart| (range.offset, range.length);
    assert_eq!(part(LeasePart::whole(name)), (0, 100));
    assert_eq!(part(LeasePart::of(name, ..)), (0, 100));
    assert_eq!(part(LeasePart::of(name, 90..200)), (90, 10));
    assert_eq!(part(LeasePart::of(name, 10..=19)), (10, 10));
    assert_eq!(part(LeasePart::of(name, 200..)), (100, 0));
    assert_eq!(part(LeasePart::of(name, ..=u64::MAX)), (0, 100));
    let (start, end) = (50, 40);
    assert_eq!(part(LeasePart::of(name, start..end)), (50, 0));
}

#[test]
fn buffers_are_used_again() {
    let first = Encoder::of(&vec![7u8; 300]);
    let place = first.payload().as_ptr();
    drop(first);
    let second = Encoder::of(&(1u64, 2u64));
    assert_eq!(second.payload().as_ptr(), place);
    assert_eq!(second.payload().len(), 16);
}

#[test]
fn a_list_kept_as_bytes_ends_at_its_first_bad_element() {
    let mut list = Vec::new();
    for number in 0..3 {
        push_element(&mut list, &Borrowed { number, bytes: b"xy" });
    }
    assert_eq!(list.len(), 3 * element_bytes(&Borrowed { number: 0, bytes: b"xy" }));
    let numbers = |list: &[u8]| -> Vec<_> {
        elements::<Borrowed<'_>>(list).map(|element| element.map(|borrowed| borrowed.number)).collect()
    };
    assert_eq!(numbers(&list), [Ok(0), Ok(1), Ok(2)]);
    list.truncate(list.len() - 1);
    assert_eq!(numbers(&list), [Ok(0), Ok(1), Err(Malformed)]);
    assert_eq!(numbers(&[]), []);
}

fn items() -> impl Strategy<Value = Item> {
    (any::<u16>(), ".{0,6}", any::<bool>(), any::<Option<u32>>()).prop_map(|(number, name, red, more)| Item {
        number,
        name,
        colour: if red { Colour::Red } else { Colour::Blue },
        more,
    })
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(
        scalars in (any::<u64>(), any::<i64>(), any::<bool>(), any::<u32>().prop_map(Rights::from_bits_retain)),
        texts in (".{0,10}", proptest::collection::vec(any::<u8>(), 0..20)),
        list in proptest::collection::vec(items(), 0..5),
        last in proptest::option::of(".{0,4}"),
    ) {
        let value: Everything = (scalars, texts, list, last);
        prop_assert_eq!(Decoder::whole::<Everything>(&bytes_of(&value)), Ok(value));
    }

    #[test]
    fn bytes_that_decode_are_the_only_ones_for_their_value(payload in proptest::collection::vec(0u8..8, 0..80)) {
        if let Ok(value) = Decoder::whole::<Everything>(&payload) {
            prop_assert_eq!(bytes_of(&value), &payload[..]);
        }
        if let Ok(value) = Decoder::whole::<(Vec<Item>, bool)>(&payload) {
            prop_assert_eq!(bytes_of(&value), &payload[..]);
        }
        let good = elements::<Borrowed<'_>>(&payload).map_while(Result::ok);
        let mut again = Vec::new();
        good.for_each(|element| push_element(&mut again, &element));
        prop_assert!(payload.starts_with(&again));
    }
}
