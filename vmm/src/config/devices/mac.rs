//! The address of a network interface.

use std::fmt;

use serde::{Serialize, Serializer};

/// A MAC address that an interface can have: a single station's, not all zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

/// Set in the first byte of an address that means several stations.
const GROUP: u8 = 1 << 0;

/// Set in the first byte of an address that no manufacturer has given out.
const LOCAL: u8 = 1 << 1;

impl Mac {
    /// The bytes, in the order in which they are written and sent.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The locally administered address that belongs to `name` of `owner`: the same each time, in every build. Two that
    /// differ have different ones but for a chance of 1 in 2^46.
    pub fn derived(owner: &[u8], name: &str) -> Self {
        // FNV-1a, 64 bits. No name holds the NUL between the two.
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let bytes = owner.iter().copied().chain([0]).chain(name.bytes());
        let hash = bytes.fold(BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
        // A multiplication carries upwards only: what is high is brought down once more, and then taken.
        let mixed = (hash ^ (hash >> 32)).wrapping_mul(PRIME);
        let [first, b, c, d, e, f, _, _] = mixed.to_be_bytes();
        Mac([(first & !GROUP) | LOCAL, b, c, d, e, f])
    }

    /// Reads `52:54:00:12:34:56`, or says why it is no address of an interface.
    pub(in crate::config) fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "six bytes of two hexadecimal digits, with colons between them";
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(FORM)?;
            // `from_str_radix` takes a leading plus sign.
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(FORM);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| FORM)?;
        }
        if parts.next().is_some() {
            return Err(FORM);
        }
        if octets == [0; 6] {
            return Err("not all zeroes");
        }
        if octets[0] & GROUP != 0 {
            return Err("unicast: the first byte must be even");
        }
        Ok(Mac(octets))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_are_shown() {
        let mac = Mac::parse("52:54:00:12:34:fE").unwrap();
        assert_eq!(mac.octets(), [0x52, 0x54, 0, 0x12, 0x34, 0xfe]);
        assert_eq!(mac.to_string(), "52:54:00:12:34:fe");
        assert_eq!(Mac::parse(&mac.to_string()), Ok(mac));
    }

    #[test]
    fn what_no_interface_can_have_is_refused() {
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56", "+2:54:00:12:34:56"]
        {
            assert!(Mac::parse(text).unwrap_err().contains("six bytes"), "{text}");
        }
        assert!(Mac::parse("53:54:00:12:34:56").unwrap_err().contains("unicast"));
        assert!(Mac::parse("ff:ff:ff:ff:ff:ff").unwrap_err().contains("unicast"));
        assert!(Mac::parse("00:00:00:00:00:00").unwrap_err().contains("zeroes"));
    }

    #[test]
    fn what_is_derived_is_local_and_stays() {
        let mac = Mac::derived(b"/etc/slat/x.toml", "uplink");
        assert_eq!(mac, Mac::derived(b"/etc/slat/x.toml", "uplink"));
        let mut seen = std::collections::HashSet::new();
        for owner in ["a", "b", "a.toml", "b.toml"] {
            for name in ["a", "b", "c", "uplink", "a.tomla"] {
                let mac = Mac::derived(owner.as_bytes(), name);
                assert_eq!(mac.octets()[0] & 3, 2, "{mac}");
                assert_eq!(Mac::parse(&mac.to_string()), Ok(mac));
                assert!(seen.insert(mac), "{owner} {name}");
            }
        }
    }
}
