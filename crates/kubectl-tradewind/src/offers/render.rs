//! The screen of `offers`. Pure.

use std::fmt::Write as _;

use tradewind_core::Offer;

use super::view::OffersView;
use crate::choice::{self, summary, terms};
use crate::screen::{Ink, Shade};
use crate::table::{Cell, Table};
use crate::text::{count, dollars};

/// What a market does not tell.
const UNTOLD: &str = "-";

/// A row for each offer; if none fits, what is nearest and why the others do not.
pub fn render(view: &OffersView, wide: bool, ink: Ink) -> String {
    let mut text = String::new();
    if view.offers.is_empty() {
        let all = count(i64::from(view.looked_at), "offer");
        let _ = writeln!(text, "{}", ink.paint(&format!("None of {all} fits."), Shade::Bad));
        if let Some(nearest) = &view.nearest {
            let price = dollars(nearest.offer.price_per_hour);
            let _ = writeln!(text, "The nearest is {} for {price} an hour: {}.", summary(&nearest.offer), nearest.says);
        }
    } else {
        text.push_str(&table(&view.offers, wide, ink));
        let more = u64::from(view.fit).saturating_sub(view.offers.len() as u64);
        if more > 0 {
            let _ = writeln!(text, "{}", ink.paint(&format!("and {more} more that fit (--limit)"), Shade::Faint));
        }
    }
    let rest = view.looked_at.saturating_sub(view.fit);
    if rest > 0 && (wide || view.offers.is_empty()) {
        let _ = write!(text, "\n{}", choice::lines(&format!("{} do not fit", offers(rest)), &view.rejected));
    } else if rest > 0 {
        let told = format!("{} do not fit (-o wide says why)", offers(rest));
        let _ = writeln!(text, "{}", ink.paint(&told, Shade::Faint));
    }
    text
}

fn offers(number: u32) -> String {
    count(i64::from(number), "offer")
}

fn table(offers: &[Offer], wide: bool, ink: Ink) -> String {
    let mut heads = vec!["GPU", "MEMORY", "$/H", "TERMS", "REGION", "TRUST", "RELIABLE", "PROVIDER"];
    if wide {
        heads.extend(["CPU", "RAM", "DISK", "$/GIB H", "MBIT/S", "CUDA", "HOST", "ID"]);
    }
    let mut table = Table::new(&heads);
    for offer in offers {
        let mut cells: Vec<Cell> = vec![
            offer.gpu.as_ref().map_or_else(|| UNTOLD.to_owned(), |gpu| format!("{}x{gpu}", offer.gpu_count)).into(),
            mebibytes(offer.gpu_memory_mib).into(),
            Cell::shaded(dollars(offer.price_per_hour), Shade::Strong),
            terms(offer.capacity).into(),
            told(&offer.region).into(),
            offer.trust.as_str().into(),
            share(offer.reliability_ppm).into(),
            offer.provider.as_str().into(),
        ];
        if wide {
            cells.extend(more(offer));
        }
        table.row(cells);
    }
    table.text(ink)
}

fn more(offer: &Offer) -> [Cell; 8] {
    [
        thousandths(offer.cpu_millis).into(),
        mebibytes(offer.memory_mib).into(),
        format!("{}Gi", offer.disk_gib).into(),
        offer.storage_price_per_gib_hour.to_string().into(),
        format!("{}/{}", mbps(offer.download_mbps), mbps(offer.upload_mbps)).into(),
        thousandths(offer.cuda_milli.into()).into(),
        told(&offer.host).into(),
        offer.id.as_str().into(),
    ]
}

fn told(text: &str) -> &str {
    if text.is_empty() { UNTOLD } else { text }
}

fn mebibytes(mib: u64) -> String {
    match mib {
        0 => UNTOLD.to_owned(),
        1..1024 => format!("{mib}Mi"),
        // Cards report a little less than their round size.
        _ => format!("{}Gi", mib.saturating_add(512) / 1024),
    }
}

/// Down or up, in Mbit/s.
fn mbps(speed: u64) -> String {
    if speed == 0 { UNTOLD.to_owned() } else { speed.to_string() }
}

/// Thousandths as a number with at most one decimal.
fn thousandths(milli: u64) -> String {
    match (milli / 1000, milli % 1000 / 100) {
        _ if milli == 0 => UNTOLD.to_owned(),
        (whole, 0) => whole.to_string(),
        (whole, tenths) => format!("{whole}.{tenths}"),
    }
}

/// Millionths in per cent, with one decimal.
fn share(ppm: u32) -> String {
    if ppm == 0 { UNTOLD.to_owned() } else { format!("{}.{}%", ppm / 10_000, ppm % 10_000 / 1000) }
}
