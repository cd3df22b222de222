"""Start a run on rented or shared machines; see launch/README.md."""
