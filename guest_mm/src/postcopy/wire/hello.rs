//! How a stream begins.

use std::fmt;

use super::checksum::body_checksum;
use super::fields::Fields;
use super::{MOST_BULK_STREAMS, MOST_REASON, Reason, WireError};

/// What a [`Hello`] and a [`Welcome`] begin with.
const MAGIC: [u8; 8] = *b"slatpage";

/// Versions of the protocol that a side speaks: from the lowest to the highest, both included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Versions {
    lowest: u16,
    highest: u16,
}

impl Versions {
    /// Those that this code speaks.
    pub const SPOKEN: Versions = Versions { lowest: 1, highest: 1 };

    /// From `lowest` to `highest`, if that is any.
    pub const fn new(lowest: u16, highest: u16) -> Option<Versions> {
        if lowest == 0 || lowest > highest { None } else { Some(Versions { lowest, highest }) }
    }

    /// The highest that both speak.
    pub fn common(self, other: Versions) -> Option<u16> {
        let highest = self.highest.min(other.highest);
        (highest >= self.lowest.max(other.lowest)).then_some(highest)
    }

    /// Whether `version` is one of them.
    pub const fn contains(self, version: u16) -> bool {
        self.lowest <= version && version <= self.highest
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.lowest, self.highest)
    }
}

/// What a stream is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The one whose end is the end of the migration.
    Control,
    /// Requests, and the pages that answer them.
    Urgent,
    /// Pages in bulk, with the stream's index: below [`MOST_BULK_STREAMS`].
    Bulk(u8),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Control => f.write_str("control"),
            Role::Urgent => f.write_str("urgent"),
            Role::Bulk(index) => write!(f, "bulk {index}"),
        }
    }
}

/// Which migration a stream belongs to; the same on all of its streams, and after a reconnect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Session([u8; 16]);

impl Session {
    /// The session with these bytes.
    pub const fn new(bytes: [u8; 16]) -> Session {
        Session(bytes)
    }

    /// One that nobody can guess.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn random() -> std::io::Result<Session> {
        let mut bytes = [0; 16];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        // Linux gives up to 256 bytes whole (getrandom(2)).
        assert_eq!(filled, bytes.len(), "the system gives 16 random bytes at once");
        Ok(Session(bytes))
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The first message of a stream, from the source. Its form is the same in every version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// What the source speaks.
    pub versions: Versions,
    /// What the stream is for.
    pub role: Role,
    /// Which migration it belongs to.
    pub session: Session,
}

impl Hello {
    /// Its length.
    pub const BYTES: usize = 40;

    /// As bytes.
    pub fn encode(&self) -> [u8; Hello::BYTES] {
        let (role, index) = match self.role {
            Role::Control => (0, 0),
            Role::Urgent => (1, 0),
            Role::Bulk(index) => (2, index),
        };
        let mut bytes = [0; Hello::BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.versions.lowest.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.versions.highest.to_le_bytes());
        bytes[12] = role;
        bytes[13] = index;
        bytes[16..32].copy_from_slice(&self.session.0);
        let sum = body_checksum([0; 8], &bytes[..32]);
        bytes[32..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn decode(bytes: &[u8; Hello::BYTES]) -> Result<Hello, WireError> {
        let what = "Hello";
        check_magic(what, bytes)?;
        let mut fields = Fields::new(what, &bytes[8..]);
        let (lowest, highest) = (fields.u16()?, fields.u16()?);
        let (role, index) = (fields.u8()?, fields.u8()?);
        fields.reserved::<2>()?;
        let session = Session(fields.u128()?.to_le_bytes());
        if fields.u64()? != body_checksum([0; 8], &bytes[..32]) {
            return Err(WireError::Checksum(what));
        }
        let value = |field, value: u64| WireError::Value { what, field, value };
        let versions = Versions::new(lowest, highest)
            .ok_or_else(|| value("lowest version", u64::from(lowest)))?;
        let role = match (role, index) {
            (0, 0) => Role::Control,
            (1, 0) => Role::Urgent,
            (2, index) if index < MOST_BULK_STREAMS => Role::Bulk(index),
            (0..=2, _) => return Err(value("index", u64::from(index))),
            _ => return Err(value("role", u64::from(role))),
        };
        Ok(Hello { versions, role, session })
    }
}

/// What kind of refusal it is: whether it is of use to try again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Refusal {
    /// There is no version that both speak.
    Version = 1,
    /// Not now: too many are being served.
    Busy = 2,
    /// The sink knows no such session, or has this stream of it already.
    Session = 3,
    /// Anything else.
    Other = 4,
}

/// The sink's answer to a [`Hello`]. Its form is the same in every version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Welcome {
    /// Frames of this version follow.
    Chosen(u16),
    /// The sink closes the stream.
    Refused(Refusal, Reason),
}

impl Welcome {
    /// The length of what each begins with, the length of the reason included.
    pub const FIXED: usize = 24;

    /// What the sink that speaks `versions` answers to a Hello: the highest version of both, or a refusal with both ranges.
    pub fn to(hello: &Hello, versions: Versions) -> Welcome {
        match versions.common(hello.versions) {
            Some(version) => Welcome::Chosen(version),
            None => Welcome::Refused(
                Refusal::Version,
                Reason::new(format_args!(
                    "the source speaks versions {}, the sink {versions}: update the older of the two",
                    hello.versions
                )),
            ),
        }
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (verdict, version, reason) = match self {
            Welcome::Chosen(version) => (0, *version, ""),
            Welcome::Refused(refusal, reason) => (*refusal as u8, 0, reason.as_str()),
        };
        let mut bytes = Vec::with_capacity(Welcome::FIXED + reason.len());
        bytes.extend(MAGIC);
        bytes.extend([verdict, 0]);
        bytes.extend(version.to_le_bytes());
        bytes.extend((reason.len() as u16).to_le_bytes());
        bytes.extend([0; 2]);
        let half = bytes[8..16].try_into().expect("eight bytes");
        bytes.extend(body_checksum(half, reason.as_bytes()).to_le_bytes());
        bytes.extend(reason.as_bytes());
        bytes
    }

    /// How many bytes of a reason follow these.
    ///
    /// # Errors
    /// [`WireError::Magic`], or [`WireError::TooLong`].
    pub fn reason_bytes(fixed: &[u8; Welcome::FIXED]) -> Result<usize, WireError> {
        check_magic("Welcome", fixed)?;
        let length = u16::from_le_bytes([fixed[12], fixed[13]]);
        if usize::from(length) > MOST_REASON {
            let (length, limit) = (u64::from(length), MOST_REASON as u64);
            return Err(WireError::TooLong { what: "Welcome", length, limit });
        }
        Ok(usize::from(length))
    }

    /// From bytes: what is fixed, and the reason.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn decode(bytes: &[u8]) -> Result<Welcome, WireError> {
        let what = "Welcome";
        let wrong_length = WireError::Length { what, length: bytes.len() as u64 };
        let (fixed, reason) = bytes.split_first_chunk().ok_or_else(|| wrong_length.clone())?;
        if Welcome::reason_bytes(fixed)? != reason.len() {
            return Err(wrong_length);
        }
        let mut fields = Fields::new(what, &fixed[8..]);
        let verdict = fields.u8()?;
        fields.reserved::<1>()?;
        let (version, _length) = (fields.u16()?, fields.u16()?);
        fields.reserved::<2>()?;
        let half = fixed[8..16].try_into().expect("eight bytes");
        if fields.u64()? != body_checksum(half, reason) {
            return Err(WireError::Checksum(what));
        }
        let refusal = match verdict {
            0 if version == 0 || !reason.is_empty() => None,
            0 => return Ok(Welcome::Chosen(version)),
            _ if version != 0 => None,
            1 => Some(Refusal::Version),
            2 => Some(Refusal::Busy),
            3 => Some(Refusal::Session),
            4 => Some(Refusal::Other),
            _ => None,
        };
        match refusal {
            Some(refusal) => Ok(Welcome::Refused(refusal, Reason::decode(reason)?)),
            None => Err(WireError::Value { what, field: "verdict", value: u64::from(verdict) }),
        }
    }
}

fn check_magic(what: &'static str, bytes: &[u8]) -> Result<(), WireError> {
    if bytes.starts_with(&MAGIC) { Ok(()) } else { Err(WireError::Magic(what)) }
}
