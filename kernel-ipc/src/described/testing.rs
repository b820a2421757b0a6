//! An interface with everything in it.

use super::{Checked, Interface};
use crate::Rights;
use crate::interface::{Cap, Lease, LeasePart, OperationError, Wire, interface};

/// A shop.
#[interface("test.shop/1")]
pub trait Shop {
    /// A shop.
    type Counter;
    /// Something to buy.
    type Ware;

    /// Look.
    const READ: Rights;
    /// Buy things.
    const BUY: Rights = 9;

    /// Sells `count` of what has this name. Nothing else.
    #[op(1, requires = READ | BUY, retry = cached, deadline = "5s")]
    fn sell(counter: Counter, name: &str, how: How, want: Rights) -> Result<(Cap<Ware>, Option<u32>), SellError>;

    /// Weighs.
    #[op(2, retry = idempotent, deadline = none)]
    fn weigh(ware: Ware, #[requires(READ)] other: Ware, parts: &[LeasePart], note: &[u8]) -> Result<Lease, WeighError>;

    /// Says everything.
    #[op(5, requires = READ, retry = idempotent, deadline = "1s")]
    fn say(counter: Counter, all: Everything) -> Result<(), WeighError>;
}

/// How it is sold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
pub struct How {
    /// How many.
    pub count: u8,
    /// In what.
    pub packing: Packing,
}

/// Something around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
#[repr(u8)]
pub enum Packing {
    /// A bag.
    Bag = 1,
    /// A box.
    Box = 200,
}

/// A set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Wire)]
pub struct Flags(pub u16);

/// One of each.
#[derive(Clone, Debug, PartialEq, Eq, Wire)]
pub struct Everything {
    /// Numbers.
    pub numbers: (u64, i64, bool),
    /// A wrapper.
    pub flags: Flags,
    /// Bytes.
    pub bytes: Vec<u8>,
    /// A list of what has a tail.
    pub list: Vec<Item>,
    /// Nothing, or nothing, or a number.
    pub maybe: Option<Option<u32>>,
    /// One behind the other.
    #[packed(Item)]
    pub packed: Vec<u8>,
}

/// An element.
#[derive(Clone, Debug, PartialEq, Eq, Wire)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// A number of it.
    pub number: Option<u16>,
}

/// Why nothing was sold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum SellError {
    /// There are only so many.
    Few {
        /// So many.
        left: u32,
    } = 2,
    /// Nobody knows it.
    Unknown = 1,
}

/// Why nothing was weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, OperationError)]
#[repr(u16)]
pub enum WeighError {
    /// The scales are broken.
    Broken = 3,
}

/// The interface as it is.
pub fn shop() -> Interface {
    Interface::of(&DESCRIPTION)
}

/// The same, checked.
pub fn checked() -> Checked {
    shop().check().expect("what the macro writes is sound")
}
