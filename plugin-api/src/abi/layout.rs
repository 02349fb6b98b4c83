//! Where each field of each type that crosses lies. A failure here means that released plugins no
//! longer run on this host: what changed goes back, or to the end of a struct that can grow, or the
//! major is raised.

#![cfg(target_pointer_width = "64")]

use std::mem::offset_of;

use super::{
    assets::{Asset, AssetsTable},
    body::{BodyStream, BodyTable, FrameSink, FrameTable},
    bytes::OwnedBytes,
    call::{Called, Respond, Responder},
    head::{
        Connection, Peer, RequestHead, RequestHead1, RequestHead2, ResponseHead, ResponseHead1,
    },
    headers::Field,
    host::{Event, Event1, Pair, Span, Work},
    lent::{Lent, Size},
    poll::{PollCode, PollState},
    root::{Settings, Settings1, TextSink},
    state::{
        Change, Check, Commit, Get, Mutation, RangeCheck, Scan, SinkTable, StateSink, StateTable,
        Watch,
    },
    upgrade::{IoStream, IoTable},
    version::{ABI, AbiVersion, LAYOUT},
    waker::{WakerOps, WakerRef, WakerWords},
    work::{WorkRequest, WorkSink, WorkSinkTable, WorkTable},
};

/// The size and the alignment of a type, and the offsets of its fields.
macro_rules! lies {
    ($type:ty, $size:literal, $align:literal $(, $field:ident $at:literal)*) => {
        let found = [size_of::<$type>(), align_of::<$type>() $(, offset_of!($type, $field))*];
        assert_eq!(found, [$size, $align $(, $at)*], stringify!($type));
    };
}

#[test]
fn every_field_lies_where_it_was_released() {
    assert_eq!((LAYOUT, ABI.major), (2, 1));
    // By value, or in lists: these never change.
    lies!(Called, 16, 8, state 0, reserved 1, future 8);
    lies!(BodyStream, 32, 8, body 0, table 8, lower 16, upper 24);
    lies!(IoStream, 16, 8, io 0, table 8);
    lies!(OwnedBytes, 32, 8, pointer 0, length 8, owner 16, free 24);
    lies!(WakerWords, 24, 8, data 0, vtable 8, ops 16);
    lies!(WakerRef<'_>, 24, 8);
    lies!(Field<'_>, 40, 8, value 0, name 16, index 32, flags 34);
    lies!(Pair<'_>, 32, 8, name 0, value 16);
    lies!(Peer, 20, 2, address 0, port 16, family 18);
    lies!(AbiVersion, 8, 4, major 0, minor 4);
    lies!(PollCode, 1, 1);
    lies!(Size, 4, 4);
    lies!(Lent<'_, Respond>, 8, 8);
    lies!(Responder<'_>, 16, 8, slot 0, table 8);
    lies!(FrameSink<'_>, 16, 8, slot 0, table 8);
    lies!(TextSink<'_>, 16, 8, slot 0, put 8);
    // The first minor's part of what grows: longer ones begin with these.
    lies!(RequestHead<'_>, 112, 8, size 0, peer 4, version 24, target 32, method 48, scheme 64, authority 80, fields 96);
    lies!(ResponseHead<'_>, 24, 8, size 0, status 4, fields 8);
    lies!(Settings<'_>, 96, 8, size 0, host 4, app 16, version 32, generation 48, config 56, env 72, runtime_threads 88, preflight 92);
    lies!(Event<'_>, 80, 8, size 0, level 4, line 8, target 16, message 32, fields 48, file 64);
    lies!(Work<'_>, 40, 8, size 0, kind 4, name 8, tenant 24);
    lies!(Respond, 48, 8, size 0, empty 8, lent 16, owned 24, stream 32, upgrade 40);
    lies!(BodyTable, 24, 8, size 0, poll 8, drop 16);
    lies!(FrameTable, 40, 8, size 0, lent 8, owned 16, trailers 24, failed 32);
    lies!(IoTable, 48, 8, size 0, read 8, write 16, flush 24, shutdown 32, drop 40);
    lies!(WakerOps, 32, 8, size 0, clone 8, wake_by_ref 16, drop 24);
    // What later minors added to them.
    lies!(RequestHead1<'_>, 128, 8, head 0, protocol 112);
    lies!(RequestHead2<'_>, 136, 8, head 0, connection 128);
    lies!(Settings1<'_>, 160, 8, settings 0, base_path 96, data_dir 112, migration 128,
            handed_over 144);
    // What 1.2 added: what is known of a connection, and the table of the state.
    lies!(Connection<'_>, 64, 8, size 0, local 4, tls_version 24, server_name 32, client_certificate 48);
    lies!(StateTable, 80, 8, size 0, settings 8, get 16, scan 24, snapshot 32, drop_snapshot 40, commit 48, watch 56, poll 64, drop 72);
    lies!(SinkTable, 48, 8, size 0, entry 8, page 16, committed 24, changed 32, failed 40);
    lies!(StateSink<'_>, 16, 8, slot 0, table 8);
    lies!(Get<'_>, 48, 8, size 0, namespace 8, key 24, snapshot 40);
    lies!(Scan<'_>, 88, 8, size 0, flags 4, namespace 8, from 24, to 40, after 56, snapshot 72, limit 80);
    lies!(Watch<'_>, 48, 8, size 0, flags 4, namespace 8, prefix 24, token 40);
    lies!(Commit<'_>, 56, 8, size 0, checks 8, ranges 24, mutations 40);
    lies!(Check<'_>, 40, 8, namespace 0, key 16, version 32);
    lies!(RangeCheck<'_>, 64, 8, namespace 0, from 16, to 32, version 48, flags 56);
    lies!(Mutation<'_>, 72, 8, namespace 0, key 16, value 32, ttl_ms 48, delta 56, kind 64);
    lies!(Change<'_>, 32, 8, key 0, version 16, flags 24);
    lies!(Event1<'_>, 96, 8, event 0, spans 80);
    lies!(Span<'_>, 32, 8, name 0, fields 16);
    lies!(ResponseHead1<'_>, 40, 8, head 0, reason 24);
    // What 1.3 added: the table of work.
    lies!(WorkTable, 32, 8, size 0, begin 8, poll 16, drop 24);
    lies!(WorkSinkTable, 24, 8, size 0, answer 8, failed 16);
    lies!(WorkSink<'_>, 16, 8, slot 0, table 8);
    lies!(WorkRequest<'_>, 56, 8, size 0, operation 4, text 8, bytes 24, commit 40);
    // What 1.4 added: the table of assets.
    lies!(AssetsTable, 16, 8, size 0, put 8);
    lies!(Asset<'_>, 56, 8, size 0, prefix 8, path 24, bytes 40);
    assert_eq!(
        [
            PollState::Pending,
            PollState::Ready,
            PollState::Ended,
            PollState::Failed,
            PollState::Panicked,
        ]
        .map(|state| state as u8),
        [0, 1, 2, 3, 4]
    );
}
