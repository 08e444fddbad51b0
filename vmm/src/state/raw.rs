//! KVM's structures and other bytes as text: two hexadecimal digits a byte, in the order of memory.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A structure of KVM's, written as its bytes: the layout is that of Linux's `asm/kvm.h` for x86-64.
#[derive(Clone, Copy)]
pub(super) struct Raw<T>(pub(super) T);

/// Bytes.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Blob(pub(super) Vec<u8>);

impl<T: IntoBytes + Immutable> PartialEq for Raw<T> {
    fn eq(&self, other: &Raw<T>) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

impl<T> fmt::Debug for Raw<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", size_of::<T>())
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<T: IntoBytes + Immutable> Serialize for Raw<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(self.0.as_bytes()))
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_hex(&self.0))
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for Raw<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw<T>, D::Error> {
        let Blob(bytes) = Blob::deserialize(deserializer)?;
        let wrong = || {
            let (has, needs) = (bytes.len(), size_of::<T>());
            Error::custom(format!("{has} bytes where a structure of KVM's has {needs}"))
        };
        T::read_from_bytes(&bytes).map(Raw).map_err(|_| wrong())
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        from_hex(&text).map(Blob).ok_or_else(|| Error::custom("bytes that are not hexadecimal"))
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

fn to_hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_read_back(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        }

        #[test]
        fn no_text_is_too_bad_to_be_refused(text in "\\PC{0,20}") {
            if let Some(bytes) = from_hex(&text) {
                prop_assert_eq!(to_hex(&bytes), text.to_lowercase());
            }
        }
    }

    #[test]
    fn a_structure_of_another_size_is_refused() {
        let read = |text: &str| serde_json::from_str::<Raw<u32>>(text);
        assert_eq!(read("\"01020304\"").unwrap(), Raw(0x0403_0201));
        for bad in ["\"010203\"", "\"0102030405\"", "\"0102030\"", "\"0102030x\"", "1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
