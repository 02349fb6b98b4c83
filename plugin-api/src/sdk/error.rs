//! Why an app does not start.

use std::fmt;

/// Why an app does not start: a sentence for the operator who deployed it, with its causes.
///
/// By `?` everything becomes one that is a boxed error or becomes one: any [`std::error::Error`]
/// that may be sent, `anyhow::Error`, `&str`, `String`.
pub struct Error(String);

impl Error {
    /// An error with this message.
    pub fn msg(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for Error {
    fn from(error: E) -> Self {
        let error = error.into();
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self(text)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::num::ParseIntError);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the port is wrong")
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    fn outer() -> Outer {
        Outer("x".parse::<u16>().expect_err("it is no number"))
    }

    #[test]
    fn what_people_have_becomes_one_with_its_causes() {
        let with_cause = "the port is wrong: invalid digit found in string";
        assert_eq!(Error::from(outer()).to_string(), with_cause);
        let boxed: Box<dyn std::error::Error + Send + Sync> = Box::new(outer());
        assert_eq!(Error::from(boxed).to_string(), with_cause);
        assert_eq!(Error::from("a text").to_string(), "a text");
        assert_eq!(Error::from(String::from("a text")).to_string(), "a text");
        let own = || -> Result<(), Error> { Err(Error::msg("its own"))? };
        assert_eq!(own().expect_err("it is one").to_string(), "its own");
    }
}
