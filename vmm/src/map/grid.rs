//! Blocks in rows by guest-physical address.

use super::BLOCK;
use super::counts::Counts;
use super::document::Document;

/// Some neighbouring blocks, shown as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The first address that it stands for.
    pub gpa: u64,
    /// The pages of its blocks; none where there is no RAM.
    pub counts: Counts,
}

/// A row of cells. Its first address is a multiple of what a row covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The first address.
    pub gpa: u64,
    /// The cells up to the last one that has RAM.
    pub cells: Vec<Cell>,
}

/// A map in rows; rows without RAM are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks of 2 MiB to a cell: a power of two.
    pub per_cell: u64,
    /// Cells to a whole row.
    pub columns: usize,
    /// The rows, by address.
    pub rows: Vec<Row>,
}

impl Grid {
    /// The map in rows of `columns` cells, at most `rows` (not 0) of them: where that is too little, a cell stands for
    /// several blocks.
    pub fn new(document: &Document, columns: usize, rows: usize) -> Grid {
        let mut per_cell = 1;
        while Self::nr_rows(document, columns as u64 * per_cell * BLOCK) > rows {
            per_cell *= 2;
        }
        let (cell_bytes, row_bytes) = (per_cell * BLOCK, columns as u64 * per_cell * BLOCK);
        let mut grid = Grid { per_cell, columns, rows: Vec::new() };
        for block in &document.blocks {
            let start = block.gpa - block.gpa % row_bytes;
            if grid.rows.last().is_none_or(|row| row.gpa != start) {
                grid.rows.push(Row { gpa: start, cells: Vec::new() });
            }
            let Some(row) = grid.rows.last_mut() else { continue };
            let column = ((block.gpa - start) / cell_bytes) as usize;
            while row.cells.len() <= column {
                let gpa = start + row.cells.len() as u64 * cell_bytes;
                row.cells.push(Cell { gpa, counts: Counts::default() });
            }
            let cell = &mut row.cells[column];
            cell.counts = cell.counts + Counts::from(block);
        }
        grid
    }

    fn nr_rows(document: &Document, row_bytes: u64) -> usize {
        let mut rows = document.blocks.iter().map(|block| block.gpa / row_bytes);
        let Some(mut last) = rows.next() else { return 0 };
        let mut count = 1;
        for row in rows {
            count += usize::from(row != last);
            last = row;
        }
        count
    }

    /// Bytes that a cell stands for.
    pub fn cell_bytes(&self) -> u64 {
        self.per_cell * BLOCK
    }

    /// Bytes that a row stands for.
    pub fn row_bytes(&self) -> u64 {
        self.columns as u64 * self.cell_bytes()
    }

    /// Whether addresses are left out in front of the row at `index`.
    pub fn has_gap_before(&self, index: usize) -> bool {
        index > 0 && self.rows[index].gpa != self.rows[index - 1].gpa + self.row_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn rows_go_around_the_hole() {
        let grid = Grid::new(&samples::mixed(), 64, 100);
        assert_eq!((grid.per_cell, grid.rows.len()), (1, 24 + 11));
        assert!(grid.has_gap_before(24) && !grid.has_gap_before(23));
        assert_eq!(grid.rows[24].gpa, 1 << 32);
        assert_eq!(grid.rows[34].cells.len(), 700 % 64);
    }

    #[test]
    fn many_blocks_share_a_cell_and_none_is_lost() {
        let document = samples::mixed();
        for rows in [1, 2, 8, 16, 64] {
            let grid = Grid::new(&document, 64, rows);
            assert!(grid.rows.len() <= rows && grid.per_cell.is_power_of_two());
            let cells = grid.rows.iter().flat_map(|row| &row.cells);
            let sum = cells.fold(Counts::default(), |sum, cell| sum + cell.counts);
            assert_eq!(sum, document.counts());
        }
    }

    #[test]
    fn blocks_at_both_ends_of_the_address_space_fit_one_row() {
        let mut blocks = samples::blocks(0, 1);
        blocks.extend(samples::blocks((1 << 31) - 1, 1));
        let grid = Grid::new(&samples::document(blocks), 16, 1);
        assert_eq!(grid.rows.len(), 1);
        assert_eq!(grid.rows[0].cells.len(), 16);
    }
}
