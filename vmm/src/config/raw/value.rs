//! What a key holds, in the file or behind `--set`.

use toml::de::DeValue;

use crate::config::schema::Kind;

/// What a key holds.
#[derive(Clone, Debug)]
pub(in crate::config) enum Value {
    /// TOML's integers are 64 bits wide; what is written may be wider, and is refused as too large where it is read.
    Integer(i128),
    Boolean(bool),
    Text(String),
    List(Vec<String>),
}

impl Value {
    /// What `value` is, if it is of the kind that a key takes.
    pub(super) fn of(value: &DeValue<'_>, kind: Kind) -> Option<Self> {
        match (value, kind) {
            (DeValue::Integer(n), Kind::Integer | Kind::Size | Kind::IntegerOrText) => {
                // Wider than 128 bits is as wrong as the widest.
                let n = i128::from_str_radix(n.as_str(), n.radix()).unwrap_or(i128::MAX);
                Some(Value::Integer(n))
            }
            (DeValue::Boolean(b), Kind::Boolean) => Some(Value::Boolean(*b)),
            (
                DeValue::String(s),
                Kind::Text | Kind::Size | Kind::IntegerOrText | Kind::TextOrList,
            ) => Some(Value::Text(s.to_string())),
            (DeValue::Array(items), Kind::List | Kind::TextOrList) => items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .map(Value::List),
            _ => None,
        }
    }

    /// The same for the text behind `--set table.key=`, where the shell has eaten the quotes: a text is taken as it is, a
    /// list is TOML's or goes by commas.
    pub(super) fn of_flag(text: &str, kind: Kind) -> Option<Self> {
        match kind {
            Kind::Integer | Kind::Boolean => Value::of(DeValue::parse(text).ok()?.get_ref(), kind),
            Kind::IntegerOrText if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                Value::of(DeValue::parse(text).ok()?.get_ref(), kind)
            }
            Kind::List | Kind::TextOrList if text.starts_with('[') => {
                Value::of(DeValue::parse(text).ok()?.get_ref(), kind)
            }
            Kind::List => Some(Value::List(text.split(',').map(str::to_owned).collect())),
            Kind::TextOrList if text.starts_with('-') => {
                Some(Value::List(text.split(',').map(str::to_owned).collect()))
            }
            Kind::Text | Kind::Size | Kind::IntegerOrText | Kind::TextOrList => {
                Some(Value::Text(text.to_owned()))
            }
        }
    }
}
