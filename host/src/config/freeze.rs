//! When nothing new goes live: `freeze` of `[app.NAME]`.

use std::{fmt, str::FromStr};

use jiff::{
    Timestamp, ToSpan, Zoned,
    civil::{Date, DateTime, Time, Weekday},
    tz::TimeZone,
};

use crate::values;

/// A span of time, once or each week, as people write it: `Fri 16:00 - Mon 07:00`, `2026-12-20 -
/// 2027-01-03`, either with the name of a time zone behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct FreezeWindow {
    /// As it was written.
    text: String,
    zone: TimeZone,
    when: When,
}

#[derive(Clone, Debug, PartialEq)]
enum When {
    /// Each week, from the first to before the second.
    Weekly(Moment, Moment),
    /// Once.
    Once(DateTime, DateTime),
}

/// A time of a weekday.
type Moment = (Weekday, Time);

/// A text that cannot be a [`FreezeWindow`].
#[derive(Debug, thiserror::Error)]
#[error(
    "`{text}` is no span of time ({why}): write e.g. \"Fri 16:00 - Mon 07:00\", \"2026-12-20 - 2027-01-03\" or \"2026-12-20T18:00 - 2026-12-27T06:00 Europe/Berlin\""
)]
pub struct InvalidFreeze {
    text: String,
    why: String,
}

const WEEKDAYS: [(&str, Weekday); 7] = [
    ("Mon", Weekday::Monday),
    ("Tue", Weekday::Tuesday),
    ("Wed", Weekday::Wednesday),
    ("Thu", Weekday::Thursday),
    ("Fri", Weekday::Friday),
    ("Sat", Weekday::Saturday),
    ("Sun", Weekday::Sunday),
];

impl FreezeWindow {
    /// Returns when the freeze that `now` lies in ends; none when it lies in none.
    pub(crate) fn until(&self, now: Timestamp) -> Option<Zoned> {
        let now = now.to_zoned(self.zone.clone());
        let local = now.datetime();
        let end = match &self.when {
            When::Once(from, to) => (*from <= local && local < *to).then_some(*to)?,
            When::Weekly(from, to) => {
                // The latest beginning, which is of this week or of the one before.
                let begin = |weeks: i64| at(local.date(), *from).checked_sub((7 * weeks).days());
                let begin = match begin(0).ok()? {
                    begin if begin <= local => begin,
                    _ => begin(1).ok()?,
                };
                let end = at(begin.date(), *to);
                let end = if end <= begin {
                    end.checked_add(7.days()).ok()?
                } else {
                    end
                };
                (local < end).then_some(end)?
            }
        };
        end.to_zoned(self.zone.clone()).ok()
    }
}

/// The moment in the week, from Monday on, that `date` is in.
fn at(date: Date, (weekday, time): Moment) -> DateTime {
    let days = i64::from(weekday.to_monday_zero_offset())
        - i64::from(date.weekday().to_monday_zero_offset());
    date.saturating_add(days.days()).to_datetime(time)
}

impl FromStr for FreezeWindow {
    type Err = InvalidFreeze;

    fn from_str(text: &str) -> Result<Self, InvalidFreeze> {
        let wrong = |why: &str| InvalidFreeze {
            text: text.to_owned(),
            why: why.to_owned(),
        };
        let (from, rest) = text
            .split_once(" - ")
            .ok_or_else(|| wrong("there is no ` - ` in it"))?;
        let mut words: Vec<_> = rest.split_whitespace().collect();
        let is_weekly = weekday(from.split_whitespace().next().unwrap_or_default()).is_some();
        let zone = if words.len() > if is_weekly { 2 } else { 1 } {
            let name = words.pop().unwrap_or_default();
            TimeZone::get(name).map_err(|_| wrong(&format!("there is no time zone `{name}`")))?
        } else {
            TimeZone::system()
        };
        let from: Vec<_> = from.split_whitespace().collect();
        let when = if is_weekly {
            let both = moment(&from).zip(moment(&words));
            let (from, to) = both.ok_or_else(|| wrong("a weekday and a time are expected"))?;
            When::Weekly(from, to)
        } else {
            let both = instant(&from, false).zip(instant(&words, true));
            let (from, to) = both.ok_or_else(|| wrong("two dates are expected"))?;
            if to <= from {
                return Err(wrong("it ends before it begins"));
            }
            When::Once(from, to)
        };
        Ok(Self {
            text: text.to_owned(),
            zone,
            when,
        })
    }
}

fn weekday(word: &str) -> Option<Weekday> {
    let found = WEEKDAYS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(word));
    found.map(|(_, weekday)| *weekday)
}

fn moment(words: &[&str]) -> Option<Moment> {
    match words {
        [day, time] => Some((weekday(day)?, Time::strptime("%H:%M", time).ok()?)),
        _ => None,
    }
}

/// A date, or a date and a time. A date that ends something belongs to it.
fn instant(words: &[&str], is_end: bool) -> Option<DateTime> {
    let [word] = words else { return None };
    if word.contains('T') {
        return word.parse().ok();
    }
    let date: Date = word.parse().ok()?;
    let date = if is_end { date.tomorrow().ok()? } else { date };
    Some(date.to_datetime(Time::midnight()))
}

impl fmt::Display for FreezeWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Returns the sentence about the freeze that the time `now` lies in; none when it lies in none.
pub(crate) fn frozen(windows: &[FreezeWindow], now: Timestamp) -> Option<String> {
    let ends = windows
        .iter()
        .filter_map(|window| Some((window.until(now)?, window)));
    let (end, window) = ends.max_by(|(one, _), (other, _)| one.cmp(other))?;
    Some(format!(
        "nothing new goes live until {} (freeze = \"{window}\")",
        end.strftime("%a %Y-%m-%d %H:%M %Z")
    ))
}

values::as_text!(FreezeWindow);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    /// When the freeze ends that the time `now`, in Berlin, lies in.
    fn until(window: &str, now: &str) -> Option<String> {
        let window: FreezeWindow = format!("{window} Europe/Berlin").parse().unwrap();
        let now: DateTime = now.parse().unwrap();
        let now = now.to_zoned(window.zone.clone()).unwrap().timestamp();
        window.until(now).map(|end| end.datetime().to_string())
    }

    #[test]
    fn a_week_has_its_freeze_over_its_end() {
        let window = "Fri 16:00 - Mon 07:00";
        // 2026-11-27 is a Friday.
        assert_eq!(until(window, "2026-11-27T15:59"), None);
        let monday = Some("2026-11-30T07:00:00".to_owned());
        for now in ["2026-11-27T16:00", "2026-11-28T12:00", "2026-11-30T06:59"] {
            assert_eq!(until(window, now), monday, "{now}");
        }
        assert_eq!(until(window, "2026-11-30T07:00"), None);
    }

    #[test]
    fn a_freeze_may_lie_within_a_day_or_leave_little_of_a_week() {
        let noon = "Wed 11:00 - Wed 13:00";
        assert_eq!(
            until(noon, "2026-11-25T12:00").unwrap(),
            "2026-11-25T13:00:00"
        );
        assert_eq!(until(noon, "2026-11-25T13:00"), None);
        assert_eq!(until(noon, "2026-11-26T12:00"), None);
        let mostly = "Wed 13:00 - Wed 11:00";
        assert_eq!(
            until(mostly, "2026-11-24T12:00").unwrap(),
            "2026-11-25T11:00:00"
        );
        assert_eq!(until(mostly, "2026-11-25T12:00"), None);
    }

    #[test]
    fn dates_are_whole_days_and_times_are_local() {
        let holidays = "2026-12-20 - 2027-01-03";
        assert_eq!(until(holidays, "2026-12-19T23:59"), None);
        assert_eq!(
            until(holidays, "2027-01-03T23:59").unwrap(),
            "2027-01-04T00:00:00"
        );
        assert_eq!(until(holidays, "2027-01-04T00:00"), None);
        // The clocks go back on the 25th at three.
        let night = "2026-10-25T01:00 - 2026-10-25T04:00";
        assert_eq!(
            until(night, "2026-10-25T03:30").unwrap(),
            "2026-10-25T04:00:00"
        );
    }

    #[test]
    fn what_is_no_span_of_time_is_told() {
        for (text, why) in [
            ("Fri 16:00", "there is no ` - `"),
            ("Fri 16:00 - Mon 25:00", "a weekday and a time"),
            ("2026-12-20 - 2026-12-01", "ends before it begins"),
            ("2026-12-20 - 2026-13-01", "two dates"),
            (
                "Fri 16:00 - Mon 07:00 Europe/Berln",
                "no time zone `Europe/Berln`",
            ),
        ] {
            let error = text.parse::<FreezeWindow>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_freeze_that_ends_last_is_told() {
        let windows: Vec<FreezeWindow> =
            ["Fri 16:00 - Mon 07:00 UTC", "2026-11-20 - 2026-12-01 UTC"]
                .map(|text| text.parse().unwrap())
                .into();
        let told = frozen(&windows, "2026-11-28T00:00Z".parse().unwrap()).unwrap();
        assert!(told.contains("until Wed 2026-12-02 00:00 UTC"), "{told}");
        assert_eq!(frozen(&windows, "2026-12-03T00:00Z".parse().unwrap()), None);
    }
}
