//! Shares of the requests, as people write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A share of the requests in percent: at least 0.0001, at most 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percent(
    /// In millionths of all requests.
    u32,
);

/// A text that cannot be a [`Percent`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no share of the requests: write e.g. `5%`, at least 0.0001% and at most 100%")]
pub struct InvalidPercent(String);

impl Percent {
    /// Returns it as a number between 0 and 1.
    pub fn part(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl FromStr for Percent {
    type Err = InvalidPercent;

    fn from_str(text: &str) -> Result<Self, InvalidPercent> {
        let number = text.trim().trim_end_matches('%').trim_end();
        match number.parse::<f64>().map(|percent| percent * 1e4) {
            Ok(millionths) if (1.0..=1e6).contains(&millionths) => {
                Ok(Self(millionths.round() as u32))
            }
            _ => Err(InvalidPercent(text.to_owned())),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 1e4)
    }
}

impl TryFrom<String> for Percent {
    type Error = InvalidPercent;

    fn try_from(text: String) -> Result<Self, InvalidPercent> {
        text.parse()
    }
}

impl From<Percent> for String {
    fn from(percent: Percent) -> Self {
        percent.to_string()
    }
}

/// The shares that a canary gets one after the other: at least one, each larger than the one
/// before. As text, with commas between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Steps(Vec<Percent>);

/// A text that cannot be [`Steps`].
#[derive(Debug, thiserror::Error)]
pub enum InvalidSteps {
    /// One of them is no share.
    #[error(transparent)]
    Percent(#[from] InvalidPercent),
    /// One is not larger than the one before.
    #[error("`{0}`: each step must be larger than the one before, as in `5%,25%,50%,100%`")]
    Order(String),
    /// They begin with another share than the canary.
    #[error("the steps {0} must begin with the share of the canary, which is {1}")]
    Begin(String, Percent),
}

impl Steps {
    /// Returns the shares of `steps`, if they can be that.
    ///
    /// # Errors
    /// When there is none, or one is not larger than the one before.
    pub fn new(steps: Vec<Percent>) -> Result<Self, InvalidSteps> {
        let steps = Self(steps);
        if steps.0.is_empty() || !steps.0.is_sorted_by(|one, next| one < next) {
            return Err(InvalidSteps::Order(steps.to_string()));
        }
        Ok(steps)
    }

    /// Returns the steps of a canary whose first share is `first`: `steps`, or where there are none
    /// that share alone.
    ///
    /// # Errors
    /// When `steps` begin with another share.
    pub fn beginning_with(first: Percent, steps: Option<Self>) -> Result<Self, InvalidSteps> {
        match steps {
            None => Ok(Self(vec![first])),
            Some(steps) if steps.0.first() == Some(&first) => Ok(steps),
            Some(steps) => Err(InvalidSteps::Begin(steps.to_string(), first)),
        }
    }

    /// Returns the shares.
    pub fn shares(&self) -> &[Percent] {
        &self.0
    }
}

impl FromStr for Steps {
    type Err = InvalidSteps;

    fn from_str(text: &str) -> Result<Self, InvalidSteps> {
        let steps: Result<Vec<Percent>, _> = text.split(',').map(str::parse).collect();
        Self::new(steps?)
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            write!(f, "{}{step}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Steps {
    type Error = InvalidSteps;

    fn try_from(text: String) -> Result<Self, InvalidSteps> {
        text.parse()
    }
}

impl From<Steps> for String {
    fn from(steps: Steps) -> Self {
        steps.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn shares_are_read_as_people_write_them() {
        for (text, shown) in [
            ("5%", "5%"),
            ("5", "5%"),
            ("0.5 %", "0.5%"),
            ("100", "100%"),
        ] {
            assert_eq!(text.parse::<Percent>().unwrap().to_string(), shown);
        }
        for wrong in ["", "%", "0", "-1%", "101%", "x", "NaN", "inf"] {
            wrong.parse::<Percent>().unwrap_err();
        }
        let steps: Steps = "5, 25%,100".parse().unwrap();
        assert_eq!(steps.to_string(), "5%,25%,100%");
        for wrong in ["", "5,5", "25,5", "5,", "5;25"] {
            wrong.parse::<Steps>().unwrap_err();
        }
    }
}
