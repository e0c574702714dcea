//! Price lists of clouds: one row a cloud, type of machine and region, a price for the whole machine.
//!
//! Columns are found by their names: `cloud`, `instance_type`, `gpu`, `gpu_count`, `vcpus`, `memory_gib`, `price`, `spot_price`, `region`;
//! others are passed over. A row is an offer on demand and, where it has a spot price, one more.

use tradewind_core::{Capacity, GpuModel, Money, Offer, Trust};
use tradewind_planner::gpus;

use super::Market;

/// Columns without which a row says nothing.
const NEEDED: [&str; 4] = ["cloud", "gpu", "gpu_count", "price"];
/// Disk of a machine in a price list, in GiB: such clouds attach disks as large as this.
const DISK_GIB: u64 = 16 << 10;
/// What is told of every list.
const ASSUMED: &str =
    "a price list tells neither disks (16 TiB, for nothing), bandwidths (200 Mbit/s) nor trust (Datacenter)";

/// Reads a price list.
pub fn read(text: &str) -> Result<Market, String> {
    let mut rows = Rows { rest: text };
    let heads = rows.next().unwrap_or_default();
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !heads.iter().any(|head| head.trim() == *name)).collect();
    if missing.len() == NEEDED.len() {
        return Err("is neither JSON nor a CSV with the columns cloud, gpu, gpu_count and price".to_owned());
    }
    if !missing.is_empty() {
        return Err(format!("has no column {} in its first line", missing.join(", ")));
    }
    let mut market = Market { assumed: vec![ASSUMED.to_owned()], ..Market::default() };
    for (n, cells) in rows.enumerate() {
        if cells.iter().all(|cell| cell.trim().is_empty()) {
            continue;
        }
        let at = |name: &str| heads.iter().position(|head| head.trim() == name);
        let cell = |name: &str| at(name).and_then(|at| cells.get(at)).map_or("", |cell| cell.trim());
        match offers(n, &cell) {
            Ok(found) => market.offers.extend(found),
            Err(reason) => market.leave_out(reason.to_owned(), 1),
        }
    }
    Ok(market)
}

/// The offers of row number `n`, whose cells are asked for by their column.
fn offers<'a>(n: usize, cell: &impl Fn(&str) -> &'a str) -> Result<Vec<Offer>, &'static str> {
    let count = number(cell("gpu_count"), "unreadable (gpu_count)")?;
    if cell("gpu").is_empty() || count.is_none() {
        return Err("without a GPU, or without its number");
    }
    let milli = count.unwrap_or_default();
    if milli == 0 || !milli.is_multiple_of(1000) {
        return Err("for a share of a GPU");
    }
    let gpu_count = u32::try_from(milli / 1000).map_err(|_| "unreadable (gpu_count)")?;
    let cpu = number(cell("vcpus"), "unreadable (vcpus)")?;
    let memory = number(cell("memory_gib"), "unreadable (memory_gib)")?;
    let gpu = GpuModel::normalise(cell("gpu"), 0);
    let gpu_memory_mib = gpus::find(&gpu).map_or(0, |known| known.memory_mib);
    let mut found = Vec::new();
    for (capacity, column) in [(Capacity::OnDemand, "price"), (Capacity::Spot, "spot_price")] {
        let Some(price_per_hour) = price(cell(column))? else { continue };
        let kind = cell("instance_type");
        found.push(Offer {
            provider: cell("cloud").to_owned(),
            id: format!("{}/{n}", if kind.is_empty() { gpu.as_str() } else { kind }),
            capacity,
            price_per_hour,
            region: cell("region").to_owned(),
            host: String::new(),
            gpu: Some(gpu.clone()),
            gpu_count,
            gpu_memory_mib,
            cpu_millis: cpu.unwrap_or(0),
            memory_mib: memory.unwrap_or(0).saturating_mul(1024) / 1000,
            disk_gib: DISK_GIB,
            storage_price_per_gib_hour: Money::ZERO,
            download_price_per_gb: Money::ZERO,
            upload_price_per_gb: Money::ZERO,
            download_mbps: 0,
            upload_mbps: 0,
            reliability_ppm: 0,
            trust: Trust::Datacenter,
            cuda_milli: 0,
            max_duration_s: None,
        });
    }
    if found.is_empty() { Err("without a price") } else { Ok(found) }
}

/// Thousandths of a number that is not negative, or nothing for an empty cell.
fn number(cell: &str, odd: &'static str) -> Result<Option<u64>, &'static str> {
    if cell.is_empty() {
        return Ok(None);
    }
    let value: f64 = cell.parse().map_err(|_| odd)?;
    let milli = (value * 1000.0).round();
    if !(0.0..1e15).contains(&milli) {
        return Err(odd);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole and within bounds, as was just checked"
    )]
    Ok(Some(milli as u64))
}

/// Dollars, rounded up to the next micro-dollar. Below zero they stay, so that the planner says what is wrong.
fn price(cell: &str) -> Result<Option<Money>, &'static str> {
    let odd = "unreadable (price)";
    if cell.is_empty() {
        return Ok(None);
    }
    let (whole, decimals) = cell.split_once('.').unwrap_or((cell, ""));
    let (kept, cut) = decimals.split_at_checked(6).unwrap_or((decimals, ""));
    if !cut.bytes().all(|b| b.is_ascii_digit()) {
        return Err(odd);
    }
    let text = if kept.is_empty() { whole.to_owned() } else { format!("{whole}.{kept}") };
    let money: Money = text.parse().map_err(|_| odd)?;
    let up = i64::from(cut.bytes().any(|b| b != b'0') && money >= Money::ZERO);
    Ok(Some(money.saturating_add(Money::from_micros(up))))
}

/// Rows of cells. A quoted cell may hold commas, line ends and doubled quotes (RFC 4180).
struct Rows<'a> {
    rest: &'a str,
}

impl Iterator for Rows<'_> {
    type Item = Vec<String>;

    fn next(&mut self) -> Option<Vec<String>> {
        if self.rest.is_empty() {
            return None;
        }
        let mut cells = vec![String::new()];
        let mut quoted = false;
        let mut chars = self.rest.char_indices().peekable();
        while let Some((_, c)) = chars.next() {
            let cell = cells.last_mut()?;
            match c {
                '"' if quoted && chars.peek().is_some_and(|(_, next)| *next == '"') => {
                    cell.push('"');
                    chars.next();
                }
                '"' => quoted = !quoted,
                ',' if !quoted => cells.push(String::new()),
                '\n' if !quoted => break,
                '\r' if !quoted => {}
                c => cell.push(c),
            }
        }
        self.rest = chars.peek().map_or("", |(at, _)| &self.rest[*at..]);
        Some(cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: &str =
        "cloud,instance_type,gpu,gpu_count,vcpus,memory_gib,price,spot_price,region,zone,as_of,source,note\n";

    fn list(rows: &str) -> Market {
        read(&format!("{HEADS}{rows}")).unwrap()
    }

    #[test]
    fn a_row_is_an_offer_on_demand_and_one_on_spot() {
        let market = list(
            "aws,g5.xlarge,A10G,1,4,16,1.0060005,0.352,us-east-1,,2026-07-20,karpenter,\"spot price: by hand, region unstated\"\n",
        );
        let told: Vec<(Capacity, &str)> =
            market.offers.iter().map(|offer| (offer.capacity, offer.region.as_str())).collect();
        assert_eq!(told, [(Capacity::OnDemand, "us-east-1"), (Capacity::Spot, "us-east-1")]);
        let first = &market.offers[0];
        assert_eq!(first.price_per_hour.to_string(), "1.006001", "never below the list's");
        assert_eq!((first.cpu_millis, first.memory_mib), (4000, 16 << 10));
        assert_eq!(first.gpu_memory_mib, 24 << 10, "as the table of models has it");
        assert_eq!(market.unread(), 0);
    }

    #[test]
    fn odd_rows_are_counted_by_reason() {
        let market = list(
            "aws,g7.xlarge,,,,,2.52,,us-east-1,,,,GPU shape not in source\nazure,nv6,A10,0.1667,6,55,0.45,,eastus,,,,\n\
             x,y,RTX4090,1,8,32,NaN,,NO,,,,\nx,y,RTX4090,nan,8,32,1,,NO,,,,\nx,y,RTX4090,-1,8,32,1,,NO,,,,\nx,y,RTX4090,1,8,32,,,NO,,,,\n\
             x,y,RTX4090,1,8,1e99,1,,NO,,,,\n\n,,,,,\nx,y,RTX4090\nx,y,RTX4090,99999999999,8,32,1,,NO\n",
        );
        assert!(market.offers.is_empty(), "{:?}", market.offers);
        assert_eq!(market.unread(), 9);
        assert_eq!(market.left_out["for a share of a GPU"], 1);
        assert_eq!(market.left_out["unreadable (gpu_count)"], 3);
        assert_eq!(market.left_out["without a price"], 1);
        assert_eq!(market.left_out["unreadable (price)"], 1);
    }

    #[test]
    fn a_negative_price_is_left_to_the_planner() {
        assert_eq!(list("x,y,RTX4090,1,8,32,-1.00,,NO\n").offers[0].price_per_hour, Money::from_micros(-1_000_000));
        assert_eq!(list("x,y,RTX4090,1,8,32,1.23456789é,,NO\n").unread(), 1);
        assert_eq!(list("x,y,RTX4090,1,8,32,1.23456é789,,NO\n").unread(), 1);
    }

    #[test]
    fn quoted_cells_hold_anything() {
        let rows: Vec<Vec<String>> = Rows { rest: "a,\"b,\"\"c\"\"\nd\"\r\n\n\"open,e" }.collect();
        assert_eq!(rows, [vec!["a", "b,\"c\"\nd"], vec![""], vec!["open,e"]]);
    }

    #[test]
    fn columns_are_found_by_their_names() {
        assert_eq!(read("price,gpu,cloud,gpu_count\n2,H100,mine,8\n").unwrap().offers[0].gpu_count, 8);
        assert!(read("cloud,gpu,gpu_count\n").unwrap_err().contains("no column price"));
        assert!(read("hello").unwrap_err().contains("neither JSON nor a CSV"));
    }
}
