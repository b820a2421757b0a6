//! Rights: what the holder of a capability may do.
//!
//! - Bits 0..8 are generic and mean the same everywhere; bits 8.. belong to the interface, and their names are in
//!   its [`Description`](crate::interface::Description).
//! - A set of rights only ever shrinks on its way from the one who minted it to the one who holds it.

use bitflags::bitflags;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

bitflags! {
    /// A set of rights. Unknown bits are kept: they are the interface's own.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Rights: u32 {
        /// Look at what the object holds.
        const READ = 1;
        /// Change what the object holds.
        const WRITE = 1 << 1;
        /// Hand the capability to a third component.
        const GRANT = 1 << 2;
        /// Map the regions from which the object's owner lends.
        const MAP = 1 << 3;
        // The interface's own rights.
        const _ = !0;
    }
}

impl Rights {
    /// The first bit that belongs to the interface.
    pub const FIRST_OF_INTERFACE: u32 = 8;

    /// The interface's own right number `n` (0 ..= 23), as a set of one.
    pub const fn of_interface(n: u32) -> Rights {
        Rights::from_bits_retain(1 << (Self::FIRST_OF_INTERFACE + n))
    }
}

impl Serialize for Rights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.bits())
    }
}

impl<'de> Deserialize<'de> for Rights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Rights::from_bits_retain(u32::deserialize(deserializer)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_of_an_interface_survive_set_operations() {
        let lookup = Rights::of_interface(0);
        let both = lookup | Rights::READ;
        assert_eq!(both.bits(), 0x101);
        assert!(both.contains(lookup));
        assert!(!Rights::READ.contains(lookup));
        assert_eq!(both - Rights::READ, lookup);
    }
}
