//! Pages that come over two streams at once, to a pool that is as large as the guest, or a little larger.

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::addr::{Gfn, Gpa, PageSize};
use crate::entry::Marker;
use crate::pool::BackingChoice;
use crate::postcopy::requests::Ask;
use crate::postcopy::stream::BulkFrame;
use crate::postcopy::wire::{Lane, Purpose};
use crate::service::{GuestConfig, Service};
use crate::space::FaultPolicy;

const BLOCK: u64 = PageSize::Size2M.frames();
const DEADLINE: Duration = Duration::from_secs(60);

/// Nobody asks for anything.
struct Nobody;

impl Line for Nobody {
    fn ask(&mut self, _: Gfn) -> Ask {
        Ask::Out
    }

    fn push(&mut self) -> bool {
        true
    }
}

/// A stream of pages, and what of the last of its frames has not been written.
struct Sends {
    to: DuplexStream,
    rest: Vec<u8>,
}

impl Sends {
    /// The pages of `range`, each with its number in every byte: all of them but for the last `late` bytes.
    async fn pages(&mut self, range: GfnRange, purpose: Purpose, late: usize) {
        let mut header = PagesHeader::new(range.start(), purpose);
        let pages: Vec<[u8; PAGE_BYTES]> =
            range.iter().map(|gfn| [1 + (gfn.as_u64() % 250) as u8; PAGE_BYTES]).collect();
        pages.iter().for_each(|page| assert!(header.push_page(page).is_ok()));
        let mut bytes = Vec::new();
        header.encode(&mut bytes).unwrap();
        bytes.extend_from_slice(pages.as_flattened());
        self.rest = bytes.split_off(bytes.len() - late);
        self.to.write_all(&bytes).await.unwrap();
    }

    async fn rest(&mut self) {
        self.to.write_all(&std::mem::take(&mut self.rest)).await.unwrap();
    }
}

fn stream(lane: Lane) -> (Sends, FrameReader<DuplexStream>) {
    let (to, from) = duplex(4 << 20);
    (Sends { to, rest: Vec::new() }, FrameReader::new(from, lane))
}

/// Takes a frame.
async fn take(
    berths: &Berths,
    guest: &Guest<crate::protocol::Sound>,
    reader: &mut FrameReader<DuplexStream>,
) -> Arrived {
    let BulkFrame::Pages(header) = reader.next_pages().await.unwrap() else { panic!("pages come") };
    let requests: Requests<Nobody> = Requests::new();
    let mut landing = Landing::new(berths);
    landing.take(guest, &requests, Onto::Missing, &header, reader).await.unwrap()
}

fn range(start: u64, frames: u64) -> GfnRange {
    GfnRange::new(Gfn::new(start), frames).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("it hangs") });
}

/// A guest of two blocks, missing both, in a pool of so many, is taken by `test`. Then all of it is there.
fn guest_of_two_blocks(pool: u64, test: impl AsyncFnOnce(&Berths, &Guest<crate::protocol::Sound>)) {
    if !::tests::require_userfaultfd() {
        return;
    }
    let mm = Service::new(BackingChoice::Auto, pool << 21, PageSize::Size4K).unwrap();
    let config = GuestConfig {
        ram: vec![range(0, 2 * BLOCK)],
        over: Vec::new(),
        policy: FaultPolicy { pages: PageSize::Size4K },
        fault_threads: 1,
        on_missing: None,
        on_stop: Box::new(|error| panic!("{error}")),
    };
    let guest = mm.add_guest(config).unwrap();
    guest.mark(range(0, 2 * BLOCK), Marker::Missing).unwrap();
    let berths = Berths::of(&guest);
    run(test(&berths, &guest));
    assert_eq!(berths.out.load(Relaxed), 0);
    assert_eq!(guest.missing(), []);
    for gfn in 0..2 * BLOCK {
        let mut byte = [0];
        guest.read(Gpa::new(gfn * PAGE_BYTES as u64 + 5), &mut byte).unwrap();
        assert_eq!(u64::from(byte[0]), 1 + gfn % 250, "page {gfn}");
    }
    assert_eq!(mm.usage().used, 2 * BLOCK);
    guest.close().unwrap();
    mm.audit().unwrap();
}

/// While a block or a run of it is being read, a page of it comes on its own.
async fn cross(
    berths: &Berths,
    guest: &Guest<crate::protocol::Sound>,
    bulk: GfnRange,
    page: u64,
) -> (Arrived, Arrived) {
    let (mut slow, mut in_bulk) = stream(Lane::BulkToSink);
    let (mut soon, mut at_once) = stream(Lane::UrgentToSink);
    slow.pages(bulk, Purpose::Bulk, 100).await;
    soon.pages(range(page, 1), Purpose::Requested, 0).await;
    let taken = async {
        tokio::join!(take(berths, guest, &mut in_bulk), take(berths, guest, &mut at_once))
    };
    let late = async {
        // What there is has been read by then: both are polled before.
        tokio::time::sleep(Duration::from_millis(20)).await;
        slow.rest().await;
    };
    tokio::join!(taken, late).0
}

/// The page had no frame: its block had the last ones, the pool was exhausted, and the guest given up.
#[test]
fn a_block_takes_no_frames_that_a_page_of_it_needs() {
    guest_of_two_blocks(2, async |berths, guest| {
        let (mut slow, mut reader) = stream(Lane::BulkToSink);
        slow.pages(range(0, BLOCK), Purpose::Bulk, 0).await;
        assert!(take(berths, guest, &mut reader).await.huge);
        let (block, page) = cross(berths, guest, range(BLOCK, BLOCK), BLOCK + 7).await;
        assert_eq!((block.pages, block.duplicates, page.pages), (BLOCK - 1, 1, 1));
        assert!(block.huge, "they all lie where they should");
    });
}

/// A page of zeroes that the guest touches first when others are being read to their frames takes its own.
#[test]
fn a_run_takes_no_frames_that_the_guest_needs() {
    guest_of_two_blocks(2, async |berths, guest| {
        assert!(berths.begin(1).is_none(), "the pool has nothing beyond the guest's RAM");
        let (mut sends, mut reader) = stream(Lane::BulkToSink);
        sends.pages(range(0, BLOCK), Purpose::Bulk, 0).await;
        take(berths, guest, &mut reader).await;
        let (run, page) = cross(berths, guest, range(BLOCK, 100), BLOCK + 7).await;
        assert_eq!((run.pages, run.duplicates, page.pages), (99, 1, 1));
        sends.pages(range(BLOCK + 100, BLOCK - 100), Purpose::Bulk, 0).await;
        assert!(take(berths, guest, &mut reader).await.huge);
    });
}

#[test]
fn a_page_that_comes_before_its_block_leaves_it_room() {
    guest_of_two_blocks(2, async |berths, guest| {
        let (mut sends, mut reader) = stream(Lane::BulkToSink);
        let (mut soon, mut at_once) = stream(Lane::UrgentToSink);
        soon.pages(range(BLOCK + 7, 1), Purpose::Requested, 0).await;
        take(berths, guest, &mut at_once).await;
        for first in [0, BLOCK] {
            sends.pages(range(first, BLOCK), Purpose::Bulk, 0).await;
            let arrived = take(berths, guest, &mut reader).await;
            assert_eq!((arrived.huge, arrived.duplicates), (true, first / BLOCK));
        }
    });
}

/// There is room for it elsewhere: then it does not wait for bulk, and the block is copied.
#[test]
fn a_page_with_room_elsewhere_overtakes_its_block_and_its_run() {
    guest_of_two_blocks(4, async |berths, guest| {
        let most = berths.begin(2 * BLOCK);
        assert!(most.is_some() && berths.begin(1).is_none());
        drop(most);
        let (block, page) = cross(berths, guest, range(0, BLOCK), 7).await;
        assert_eq!((block.pages, block.duplicates, page.pages), (BLOCK - 1, 1, 1));
        let (mut sends, mut reader) = stream(Lane::UrgentToSink);
        sends.pages(range(BLOCK, 1), Purpose::Requested, 0).await;
        take(berths, guest, &mut reader).await;
        let (run, page) = cross(berths, guest, range(BLOCK + 1, BLOCK - 1), BLOCK + 300).await;
        assert_eq!((run.pages, run.duplicates, page.pages), (BLOCK - 2, 1, 1));
    });
}
