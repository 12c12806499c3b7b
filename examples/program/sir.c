/* An epidemic among n people, event by event (Gillespie's direct method).
 *
 *     sir --beta B --gamma G --people N --cases I --days D --seed S --out FILE
 *
 * FILE gets a line for every day: day, susceptible, infected, recovered.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

/* SplitMix64: all that a seed below 2^64 needs to become a stream. */
static double uniform(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return ((z >> 11) + 0.5) / 9007199254740992.0; /* within (0, 1) */
}

/* The word after a name; the program ends where there is none. */
static const char *option(int count, char **words, const char *name)
{
    for (int i = 1; i + 1 < count; i += 2)
        if (strcmp(words[i], name) == 0)
            return words[i + 1];
    fprintf(stderr, "sir: %s is missing\n", name);
    exit(2);
}

int main(int count, char **words)
{
    double beta = atof(option(count, words, "--beta"));
    double gamma = atof(option(count, words, "--gamma"));
    long people = atol(option(count, words, "--people"));
    long infected = atol(option(count, words, "--cases"));
    long days = atol(option(count, words, "--days"));
    long susceptible = people - infected;
    double now = 0;
    FILE *out = fopen(option(count, words, "--out"), "w");

    state = strtoull(option(count, words, "--seed"), NULL, 10);
    if (out == NULL || susceptible < 0 || days < 0) {
        fprintf(stderr, "sir: no file to write to, or numbers below 0\n");
        return 2;
    }
    fprintf(out, "day,susceptible,infected,recovered\n");
    for (long day = 0; day <= days; day++) {
        while (infected > 0) {
            double infection = beta * susceptible * infected / people;
            double rate = infection + gamma * infected;
            double next = now - log(uniform()) / rate;

            if (next > day) /* what has no memory may be drawn anew */
                break;
            now = next;
            if (uniform() * rate < infection)
                susceptible--, infected++;
            else
                infected--;
        }
        now = day;
        fprintf(out, "%ld,%ld,%ld,%ld\n", day, susceptible, infected,
                people - susceptible - infected);
    }
    return fclose(out) == 0 ? 0 : 1;
}
