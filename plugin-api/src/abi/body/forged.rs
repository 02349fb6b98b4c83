//! A body that no honest other side sends, for the tests here and for `tests/fuzz`.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{BodyStream, BodyTable, FrameSink, Lent, PollCode, PollState, Size, WakerRef};

/// What a body says of itself, and what it does.
#[derive(Clone, Debug)]
pub struct Forged {
    /// What is left at least, in bytes.
    pub lower: u64,
    /// What is left at most, in bytes.
    pub upper: u64,
    /// What it does when it is polled. Then it has ended.
    pub polls: VecDeque<(PollState, Vec<Put>)>,
}

/// Something put into the sink.
#[derive(Clone, Debug)]
pub enum Put {
    /// Bytes, however they cross.
    Data(Bytes),
    /// Trailers without a field.
    Trailers,
    /// Why it failed.
    Failed(String),
}

impl Forged {
    /// It as a body.
    pub fn body(self) -> BodyStream {
        unsafe extern "C" fn poll(
            body: *mut (),
            _waker: &WakerRef<'_>,
            sink: &FrameSink<'_>,
        ) -> PollCode {
            // SAFETY: the box of `body`, which its only owner polls.
            let body = unsafe { &mut *body.cast::<Forged>() };
            let (state, puts) = body
                .polls
                .pop_front()
                .unwrap_or((PollState::Ended, Vec::new()));
            for put in puts {
                match put {
                    Put::Data(data) => sink.data(&data),
                    // SAFETY: the slot is live during the poll that lent this sink.
                    Put::Trailers => unsafe { (sink.table.trailers)(sink.slot, (&[][..]).into()) },
                    Put::Failed(why) => sink.failed(&why),
                }
            }
            state.into()
        }
        unsafe extern "C" fn free(body: *mut ()) {
            // SAFETY: the box of `body`, given up by its only owner.
            drop(unsafe { Box::from_raw(body.cast::<Forged>()) });
        }
        let (lower, upper) = (self.lower, self.upper);
        BodyStream {
            body: Box::into_raw(Box::new(self)).cast(),
            table: Lent::of(
                const {
                    &BodyTable {
                        size: Size::of::<BodyTable>(),
                        poll,
                        drop: free,
                    }
                },
            ),
            lower,
            upper,
        }
    }

    /// Reads it to its end, as whoever it was given to would.
    pub fn take_in(self) {
        use http_body::Body;
        let mut most = self.polls.len() + 1;
        let mut body = self.body().import(());
        let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
        while !body.is_end_stream() && most > 0 {
            let hint = body.size_hint();
            assert!(hint.upper().is_none_or(|upper| hint.lower() <= upper));
            let _ = std::pin::Pin::new(&mut body).poll_frame(cx);
            most -= 1;
        }
        assert!(body.is_end_stream(), "it was read beyond its end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_lies_is_read_to_its_end() {
        let long = Bytes::from_static(&[7; 20_000]);
        let data = || Put::Data(Bytes::from_static(b"four"));
        for (lower, upper) in [(0, 0), (9, 3), (u64::MAX, 0), (1, u64::MAX)] {
            for polls in [
                vec![],
                vec![(PollState::Ready, vec![])],
                vec![(PollState::Failed, vec![])],
                vec![(PollState::Ready, vec![Put::Failed("why".to_owned())])],
                vec![(PollState::Pending, vec![Put::Data(long.clone()), data()])],
                vec![
                    (PollState::Ready, vec![Put::Trailers]),
                    (PollState::Ready, vec![data(), Put::Trailers, data()]),
                    (PollState::Ended, vec![data()]),
                ],
            ] {
                let polls = polls.into();
                Forged {
                    lower,
                    upper,
                    polls,
                }
                .take_in();
            }
        }
    }
}
