//! What can stand in a message: numbers, rights, strings, lists, options and tuples.

use super::{Decode, Decoder, Encode, Encoder, Layout, Malformed};
use crate::described::{Type, Types};
use crate::rights::Rights;

macro_rules! integers {
    ($($integer:ident $name:ident)*) => {$(
        impl Layout for $integer {
            const FIXED_BYTES: usize = size_of::<$integer>();

            fn describe(_: &mut Types) -> Type {
                Type::$name
            }
        }
        impl Encode for $integer {
            fn encode(&self, to: &mut Encoder) {
                to.fixed(&self.to_le_bytes());
            }
        }
        impl Decode<'_> for $integer {
            fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
                Ok($integer::from_le_bytes(from.fixed()?))
            }
        }
    )*};
}

integers! { u16 U16 u32 U32 u64 U64 i64 I64 }

impl Layout for u8 {
    const FIXED_BYTES: usize = 1;

    fn describe(_: &mut Types) -> Type {
        Type::U8
    }
}

impl Encode for u8 {
    fn encode(&self, to: &mut Encoder) {
        to.fixed(&[*self]);
    }

    fn encode_elements(elements: &[u8], to: &mut Encoder) {
        to.tail(elements);
    }
}

impl Decode<'_> for u8 {
    fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let [byte] = from.fixed()?;
        Ok(byte)
    }

    fn decode_elements(count: usize, from: &mut Decoder<'_>) -> Result<Vec<u8>, Malformed> {
        Ok(from.tail(count)?.to_vec())
    }
}

impl Layout for bool {
    const FIXED_BYTES: usize = 1;

    fn describe(_: &mut Types) -> Type {
        Type::Bool
    }
}

impl Encode for bool {
    fn encode(&self, to: &mut Encoder) {
        to.fixed(&[u8::from(*self)]);
    }
}

impl Decode<'_> for bool {
    fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        match from.fixed()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed),
        }
    }
}

impl Layout for Rights {
    const FIXED_BYTES: usize = 4;

    fn describe(_: &mut Types) -> Type {
        Type::Rights
    }
}

impl Encode for Rights {
    fn encode(&self, to: &mut Encoder) {
        self.bits().encode(to);
    }
}

impl Decode<'_> for Rights {
    fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Rights::from_bits_retain(u32::decode(from)?))
    }
}

/// Strings and lists: a count in the fixed part.
const COUNT_BYTES: usize = 4;

impl<T: Layout> Layout for [T] {
    const FIXED_BYTES: usize = COUNT_BYTES;

    fn describe(types: &mut Types) -> Type {
        types.list::<T>()
    }
}

impl<T: Encode> Encode for [T] {
    fn encode(&self, to: &mut Encoder) {
        to.count(self.len());
        T::encode_elements(self, to);
    }
}

impl<T: Layout> Layout for Vec<T> {
    const FIXED_BYTES: usize = COUNT_BYTES;

    fn describe(types: &mut Types) -> Type {
        types.list::<T>()
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, to: &mut Encoder) {
        self.as_slice().encode(to);
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Vec<T> {
    fn decode(from: &mut Decoder<'a>) -> Result<Self, Malformed> {
        let count = from.count()?;
        T::decode_elements(count, from)
    }
}

impl<'a> Decode<'a> for &'a [u8] {
    fn decode(from: &mut Decoder<'a>) -> Result<Self, Malformed> {
        let count = from.count()?;
        from.tail(count)
    }
}

impl Layout for str {
    const FIXED_BYTES: usize = COUNT_BYTES;

    fn describe(_: &mut Types) -> Type {
        Type::Text
    }
}

impl Encode for str {
    fn encode(&self, to: &mut Encoder) {
        self.as_bytes().encode(to);
    }
}

impl<'a> Decode<'a> for &'a str {
    fn decode(from: &mut Decoder<'a>) -> Result<Self, Malformed> {
        str::from_utf8(<&[u8]>::decode(from)?).map_err(|_| Malformed)
    }
}

impl Layout for String {
    const FIXED_BYTES: usize = COUNT_BYTES;

    fn describe(_: &mut Types) -> Type {
        Type::Text
    }
}

impl Encode for String {
    fn encode(&self, to: &mut Encoder) {
        self.as_str().encode(to);
    }
}

impl Decode<'_> for String {
    fn decode(from: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(<&str>::decode(from)?.to_owned())
    }
}

impl<T: Layout + ?Sized> Layout for &T {
    const FIXED_BYTES: usize = T::FIXED_BYTES;

    fn describe(types: &mut Types) -> Type {
        types.of::<T>()
    }
}

impl<T: Encode + ?Sized> Encode for &T {
    fn encode(&self, to: &mut Encoder) {
        (**self).encode(to);
    }
}

/// A flag, then the value's fixed part, which is zero when there is no value.
impl<T: Layout> Layout for Option<T> {
    const FIXED_BYTES: usize = 1 + T::FIXED_BYTES;

    fn describe(types: &mut Types) -> Type {
        Type::Option(Box::new(types.of::<T>()))
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, to: &mut Encoder) {
        self.is_some().encode(to);
        match self {
            Some(value) => value.encode(to),
            None => to.skip(T::FIXED_BYTES),
        }
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Option<T> {
    fn decode(from: &mut Decoder<'a>) -> Result<Self, Malformed> {
        if bool::decode(from)? {
            T::decode(from).map(Some)
        } else {
            from.zeros(T::FIXED_BYTES)?;
            Ok(None)
        }
    }
}

macro_rules! tuples {
    ($(($($name:ident $index:tt),*))*) => {$(
        impl<$($name: Layout),*> Layout for ($($name,)*) {
            const FIXED_BYTES: usize = 0 $(+ $name::FIXED_BYTES)*;

            #[allow(unused_variables, reason = "the empty tuple has no parts")]
            fn describe(types: &mut Types) -> Type {
                Type::Tuple(vec![$(types.of::<$name>()),*])
            }
        }
        impl<$($name: Encode),*> Encode for ($($name,)*) {
            #[allow(unused_variables, reason = "the empty tuple writes nothing")]
            fn encode(&self, to: &mut Encoder) {
                $(self.$index.encode(to);)*
            }
        }
        impl<'a, $($name: Decode<'a>),*> Decode<'a> for ($($name,)*) {
            #[allow(unused_variables, clippy::unused_unit, reason = "the empty tuple reads nothing")]
            fn decode(from: &mut Decoder<'a>) -> Result<Self, Malformed> {
                Ok(($($name::decode(from)?,)*))
            }
        }
    )*};
}

tuples! { () (A 0, B 1) (A 0, B 1, C 2) (A 0, B 1, C 2, D 3) }
