//! From bytes to JSON, by a description. What is written is what [`encode`](super::encode) reads.
//!
//! Nothing in the bytes is believed: what the generated code takes for malformed is malformed here too, but for the rules of
//! [`Definition::Bytes`] that go beyond a length.

use serde_json::{Map, Value, json};

use super::book::Book;
use super::{Checked, Definition, Field, Message, Operation, Type, base64, is_wrapper};
use crate::codec::{Decoder, Malformed};

impl Checked {
    /// The arguments of a call, the target among them if it is no root. What is named beside the payload is entered into
    /// `book`.
    ///
    /// # Errors
    /// [`Malformed`] when they are not what the operation takes, or there is no target and the root is none for it.
    pub fn decode_arguments(
        &self,
        operation: &Operation,
        message: &Message,
        book: &mut Book,
    ) -> Result<Value, Malformed> {
        if message.target.is_none() && !self.takes_root(operation) {
            return Err(Malformed);
        }
        self.decode_without_target(operation, message, book)
    }

    /// The same of a call whose target may not be known: what its payload means, and what is beside it.
    ///
    /// # Errors
    /// [`Malformed`] when they are not what the operation takes.
    pub fn decode_without_target(
        &self,
        operation: &Operation,
        message: &Message,
        book: &mut Book,
    ) -> Result<Value, Malformed> {
        let mut object = Map::new();
        if let Some(target) = message.target {
            object.insert(operation.target.name.clone(), book.capability(&operation.target.kind, target));
        }
        let fixed_bytes = self.fixed_bytes_of(&operation.arguments);
        let mut reader = Reader::new(self, book, fixed_bytes, message)?;
        reader.fields(&operation.arguments, &mut object)?;
        reader.from.finish()?;
        Ok(Value::Object(object))
    }

    /// A value alone: a result. What came beside the payload is entered into `book`.
    ///
    /// # Errors
    /// [`Malformed`] when the message is no such value.
    pub fn decode(&self, ty: &Type, message: &Message, book: &mut Book) -> Result<Value, Malformed> {
        let mut reader = Reader::new(self, book, self.fixed_bytes(ty), message)?;
        let value = reader.value(ty)?;
        reader.from.finish()?;
        Ok(value)
    }

    /// The fields of an error.
    ///
    /// # Errors
    /// [`Malformed`] when the payload is not what the error has.
    pub fn decode_fields(&self, fields: &[Field], payload: &[u8]) -> Result<Value, Malformed> {
        let (mut book, mut object) = (Book::default(), Map::new());
        let message = Message { payload: payload.to_vec(), ..Message::default() };
        let mut reader = Reader::new(self, &mut book, self.fixed_bytes_of(fields), &message)?;
        let value = match fields {
            [only] if is_wrapper(fields) => reader.value(&only.ty)?,
            _ => {
                reader.fields(fields, &mut object)?;
                Value::Object(object)
            }
        };
        reader.from.finish()?;
        Ok(value)
    }
}

struct Reader<'a, 'b> {
    interface: &'a Checked,
    book: &'b mut Book,
    from: Decoder<'a>,
}

impl<'a, 'b> Reader<'a, 'b> {
    fn new(
        interface: &'a Checked,
        book: &'b mut Book,
        fixed_bytes: usize,
        message: &'a Message,
    ) -> Result<Reader<'a, 'b>, Malformed> {
        let from = Decoder::new(fixed_bytes, &message.payload)?.with_beside(&message.capabilities, &message.leases);
        Ok(Reader { interface, book, from })
    }

    fn value(&mut self, ty: &Type) -> Result<Value, Malformed> {
        Ok(match ty {
            Type::U8 => json!(u8::from_le_bytes(self.from.fixed()?)),
            Type::U16 => json!(u16::from_le_bytes(self.from.fixed()?)),
            Type::U32 => json!(u32::from_le_bytes(self.from.fixed()?)),
            Type::U64 => json!(u64::from_le_bytes(self.from.fixed()?)),
            Type::I64 => json!(i64::from_le_bytes(self.from.fixed()?)),
            Type::Bool => json!(self.flag()?),
            Type::Rights => {
                let bits = u32::from_le_bytes(self.from.fixed()?);
                self.rights(bits)
            }
            Type::Text => json!(str::from_utf8(self.counted()?).map_err(|_| Malformed)?),
            Type::Bytes => bytes(self.counted()?),
            Type::List(element) => self.list(element)?,
            Type::Packed(element) => {
                let packed = self.counted()?;
                self.packed(element, packed).unwrap_or_else(|Malformed| bytes(packed))
            }
            Type::Option(inner) => self.option(inner)?,
            Type::Tuple(parts) if parts.is_empty() => Value::Null,
            Type::Tuple(parts) => Value::Array(parts.iter().map(|part| self.value(part)).collect::<Result<_, _>>()?),
            Type::Named(name) => self.named(name)?,
            Type::Handle { kind, .. } | Type::Capability { kind } => {
                let handle = self.from.handle()?;
                self.book.capability(kind, handle)
            }
            Type::Lease => {
                let lease = self.from.lease()?;
                self.book.lease(lease)
            }
            Type::LeasePart => {
                let lease = self.from.lease()?;
                let (offset, length) = (self.from.fixed()?, self.from.fixed()?);
                self.book.part(lease, u64::from_le_bytes(offset), u64::from_le_bytes(length))?
            }
        })
    }

    fn fields(&mut self, fields: &[Field], object: &mut Map<String, Value>) -> Result<(), Malformed> {
        for field in fields {
            let value = self.value(&field.ty)?;
            object.insert(field.name.clone(), value);
        }
        Ok(())
    }

    fn named(&mut self, name: &str) -> Result<Value, Malformed> {
        let interface = self.interface;
        match interface.types.get(name).ok_or(Malformed)? {
            Definition::Struct { fields, .. } => match fields.as_slice() {
                [only] if is_wrapper(fields) => self.value(&only.ty),
                _ => {
                    let mut object = Map::new();
                    self.fields(fields, &mut object)?;
                    Ok(Value::Object(object))
                }
            },
            Definition::Enum { variants, .. } => {
                let [number] = self.from.fixed::<1>()?;
                let variant = variants.iter().find(|variant| variant.number == u16::from(number));
                Ok(json!(variant.ok_or(Malformed)?.name))
            }
            Definition::Bytes { min, max, .. } => {
                let counted = self.counted()?;
                let fits = (*min as usize..=*max as usize).contains(&counted.len());
                if fits { Ok(bytes(counted)) } else { Err(Malformed) }
            }
        }
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.from.fixed()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.from.count()?;
        self.from.tail(count)
    }

    fn list(&mut self, element: &Type) -> Result<Value, Malformed> {
        let count = self.from.count()?;
        let fixed_bytes = self.interface.fixed_bytes(element);
        let mut elements = Vec::new();
        // Each takes a byte of the tail, or something beside: a count that lies ends with the first that is missing.
        for _ in 0..count {
            let own = self.from.tail(fixed_bytes)?;
            let outer = self.from.replace_fixed(own);
            elements.push(self.value(element)?);
            self.from.replace_fixed(outer);
        }
        Ok(Value::Array(elements))
    }

    /// Elements that fill `packed`.
    fn packed(&mut self, element: &Type, packed: &'a [u8]) -> Result<Value, Malformed> {
        let fixed_bytes = self.interface.fixed_bytes(element);
        let mut elements = Vec::new();
        let mut rest = packed;
        while !rest.is_empty() {
            let from = Decoder::new(fixed_bytes, rest)?;
            let mut reader = Reader { interface: self.interface, book: &mut *self.book, from };
            elements.push(reader.value(element)?);
            rest = reader.from.rest()?;
        }
        Ok(Value::Array(elements))
    }

    fn option(&mut self, inner: &Type) -> Result<Value, Malformed> {
        if !self.flag()? {
            self.from.zeros(self.interface.fixed_bytes(inner))?;
            return Ok(Value::Null);
        }
        let value = self.value(inner)?;
        Ok(if self.interface.is_nullable(inner) { json!({ "some": value }) } else { value })
    }

    fn rights(&self, bits: u32) -> Value {
        let known = self.interface.rights.iter().filter(|right| bits >> right.bit & 1 == 1);
        let mut names: Vec<Value> = known.clone().map(|right| json!(right.name)).collect();
        let unknown = known.fold(bits, |rest, right| rest & !(1 << right.bit));
        if unknown != 0 {
            names.push(json!(unknown));
        }
        Value::Array(names)
    }
}

/// Text where they are UTF-8.
pub fn bytes(bytes: &[u8]) -> Value {
    match str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": base64::encode(bytes) }),
    }
}
