//! Values as people write them in the configuration and on the command line: lengths of time,
//! sizes, counts, texts. Each is read with its bounds, so that an error knows its line, and written
//! as it is read.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    marker::PhantomData,
    num::NonZeroUsize,
    str::FromStr,
    time::Duration,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor},
};

/// More threads than this are a slip of the pen on any machine.
pub(crate) const THREADS: usize = 1024;

/// The same for what takes a file or a generation each.
pub(crate) const FILES: usize = 1000;

/// The same for what is only counted.
pub(crate) const MANY: usize = 1_000_000_000;

/// The longest time that can be set: beyond it sums of times have no place in the clocks of a
/// computer.
pub(crate) const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The largest size that can be set, a pebibyte.
const LARGEST: u64 = 1 << 50;

/// A length of time as people write it.
///
/// # Errors
/// The sentence for a person.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |what: &str| {
        format!("`{text}` is not a length of time ({what}): write e.g. \"500ms\", \"30s\", \"1h\"")
    };
    match humantime::parse_duration(text) {
        Err(error) => Err(wrong(&error.to_string())),
        Ok(span) if span > LONGEST => Err(wrong("more than 3650 days")),
        Ok(span) => Ok(span),
    }
}

fn size_of(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let shift = match unit.trim_start() {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes <= LARGEST).then_some(bytes)
}

/// `bytes` in the largest unit that has no fraction.
fn size_as_text(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(shift, _): &(u32, _)| bytes > 0 && bytes.is_multiple_of(1 << shift);
    match units.into_iter().find(fits) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

/// What a count is read as.
pub(crate) trait OfCount {
    /// The value of a number that is within its bounds.
    fn of_count(count: usize) -> Self;
}

impl OfCount for usize {
    fn of_count(count: usize) -> Self {
        count
    }
}

impl OfCount for u64 {
    fn of_count(count: usize) -> Self {
        count as Self
    }
}

impl OfCount for NonZeroUsize {
    fn of_count(count: usize) -> Self {
        Self::new(count).unwrap_or(Self::MIN)
    }
}

impl OfCount for Option<NonZeroUsize> {
    fn of_count(count: usize) -> Self {
        NonZeroUsize::new(count)
    }
}

/// Reads a number from `LEAST` to `MOST`.
pub(crate) fn count<'de, const LEAST: usize, const MOST: usize, T, D>(
    from: D,
) -> Result<T, D::Error>
where
    T: OfCount,
    D: Deserializer<'de>,
{
    let number = i64::deserialize(from)?;
    match usize::try_from(number) {
        Ok(count) if (LEAST..=MOST).contains(&count) => Ok(T::of_count(count)),
        _ => Err(D::Error::custom(format!(
            "it cannot be {number}: write a number from {LEAST} to {MOST}"
        ))),
    }
}

/// Reads a text by its type. An error has the place of the text, in a list as well.
pub(crate) fn parsed<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    struct Text<T>(PhantomData<T>);

    impl<T: FromStr<Err: Display>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    from.deserialize_str(Text(PhantomData))
}

/// Has a type read and written as its text.
macro_rules! as_text {
    ($type:ty) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                crate::values::parsed(from)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    };
}

pub(crate) use as_text;

/// Reads a list of texts, each by the type `T`, which says what is wrong with one.
pub(crate) fn each<'de, T, D>(from: D) -> Result<Vec<String>, D::Error>
where
    T: FromStr<Err: Display> + Into<String>,
    D: Deserializer<'de>,
{
    let list = Vec::<Parsed<T>>::deserialize(from)?;
    Ok(list.into_iter().map(|text| text.0.into()).collect())
}

/// The same of a table: names by the type `K`, values by the type `V`.
pub(crate) fn each_of_table<'de, K, V, D>(from: D) -> Result<BTreeMap<String, String>, D::Error>
where
    K: FromStr<Err: Display> + Into<String>,
    V: FromStr<Err: Display> + Into<String>,
    D: Deserializer<'de>,
{
    let table = BTreeMap::<String, Parsed<V>>::deserialize(from)?;
    let pairs = table.into_iter();
    pairs
        .map(|(name, value)| {
            let name: K = name.parse().map_err(D::Error::custom)?;
            Ok((name.into(), value.0.into()))
        })
        .collect()
}

struct Parsed<T>(T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parsed(from).map(Self)
    }
}

/// A length of time, more than none.
pub(crate) mod span {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        match super::duration(&String::deserialize(from)?).map_err(D::Error::custom)? {
            Duration::ZERO => Err(D::Error::custom("it cannot be zero: write e.g. \"30s\"")),
            some => Ok(some),
        }
    }

    pub(crate) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*span))
    }
}

/// A length of time, or `none`.
pub(crate) mod limit {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn deserialize<'de, D>(from: D) -> Result<Option<Duration>, D::Error>
    where
        D: Deserializer<'de>,
    {
        let text = String::deserialize(from)?;
        if text == "none" {
            return Ok(None);
        }
        super::duration(&text)
            .map(Some)
            .map_err(|error| D::Error::custom(format!("{error}, or \"none\"")))
    }

    pub(crate) fn serialize<S>(limit: &Option<Duration>, to: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
    {
        match limit {
            Some(span) => super::span::serialize(span, to),
            None => to.serialize_str("none"),
        }
    }
}

/// A length of time, more than none, or `none`.
pub(crate) mod patience {
    use std::time::Duration;

    use serde::{Deserializer, de::Error as _};

    pub(crate) use super::limit::serialize;

    pub(crate) fn deserialize<'de, D>(from: D) -> Result<Option<Duration>, D::Error>
    where
        D: Deserializer<'de>,
    {
        match super::limit::deserialize(from)? {
            Some(Duration::ZERO) => Err(D::Error::custom(
                "it cannot be zero: write e.g. \"30s\", or \"none\" for no limit",
            )),
            some_or_none => Ok(some_or_none),
        }
    }
}

/// A number of bytes.
pub(crate) mod size {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        super::size_of(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is not a size: write e.g. \"512KiB\", \"64MiB\", \"1GiB\""
            ))
        })
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::size_as_text(*bytes))
    }
}

/// A number of bytes, more than none, or `none`.
pub(crate) mod size_limit {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn deserialize<'de, D>(from: D) -> Result<Option<u64>, D::Error>
    where
        D: Deserializer<'de>,
    {
        let text = String::deserialize(from)?;
        match (text.as_str(), super::size_of(&text)) {
            ("none", _) => Ok(None),
            (_, Some(bytes @ 1..)) => Ok(Some(bytes)),
            _ => Err(D::Error::custom(format!(
                "`{text}` is not a size, more than none: write e.g. \"64MiB\", \"1GiB\", or \"none\""
            ))),
        }
    }

    pub(crate) fn serialize<S: Serializer>(limit: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        match limit {
            Some(bytes) => super::size::serialize(bytes, to),
            None => to.serialize_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_written_as_it_is_read() {
        for text in ["0B", "1000B", "1KiB", "1536KiB", "64MiB", "3GiB"] {
            let size = size_of(text);
            assert_eq!(size.map(size_as_text).as_deref(), Some(text));
        }
    }
}
