//! Heads and bodies that no honest other side sends: taken in or refused, without a panic, and
//! sound afterwards.
#![no_main]

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use handover_plugin::abi::{
    body::forged::{Forged as Body, Put},
    head::forged::Forged as Head,
    poll::PollState,
};
use libfuzzer_sys::fuzz_target;

fn head(u: &mut Unstructured<'_>) -> Result<()> {
    let mut fields = Vec::new();
    for _ in 0..u.int_in_range(0..=30)? {
        let index = match u.arbitrary()? {
            true => u16::MAX,
            false => u.int_in_range(0..=90)?,
        };
        let name = u.arbitrary()?;
        if let Ok(value) = http::HeaderValue::from_bytes(u.arbitrary()?) {
            let times = match u.arbitrary()? {
                0_u8 => u.arbitrary()?,
                _ => 1_u8,
            };
            fields.extend(std::iter::repeat_n((index, name, value), times.into()));
        }
    }
    Head {
        fields,
        family: u.arbitrary()?,
        version: u.arbitrary()?,
        status: u.arbitrary()?,
        size: u.arbitrary()?,
        method: u.arbitrary()?,
        scheme: u.arbitrary()?,
        authority: u.arbitrary()?,
        target: u.arbitrary()?,
    }
    .take_in();
    Ok(())
}

fn body(u: &mut Unstructured<'_>) -> Result<()> {
    let mut polls = std::collections::VecDeque::new();
    for _ in 0..u.int_in_range(0..=8)? {
        let state = *u.choose(&[
            PollState::Pending,
            PollState::Ready,
            PollState::Ended,
            PollState::Failed,
            PollState::Panicked,
        ])?;
        let mut puts = Vec::new();
        for _ in 0..u.int_in_range(0..=3)? {
            puts.push(match u.int_in_range(0..=3)? {
                0 => Put::Trailers,
                1 => Put::Failed(u.arbitrary()?),
                // More than is copied.
                2 => Put::Data(vec![7; 20_000].into()),
                _ => Put::Data(Bytes::copy_from_slice(u.arbitrary()?)),
            });
        }
        polls.push_back((state, puts));
    }
    Body {
        lower: u.arbitrary()?,
        upper: u.arbitrary()?,
        polls,
    }
    .take_in();
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    let u = &mut Unstructured::new(input);
    // Too few bytes are nothing.
    let _ = match u.arbitrary() {
        Ok(true) => head(u),
        _ => body(u),
    };
});
