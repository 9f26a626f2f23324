/*
 * instructions.c - what callgrind runs: one of the paths of paths.c.
 *
 *   instructions            lists them
 *   instructions PATH       runs one, prints how many operations it did
 */
#include <stdio.h>
#include <string.h>

#include "paths.h"

int main(int count, char **arguments)
{
    const char *name;

    for (uint32_t number = 0; (name = path_name(number)); number++)
        if (count < 2)
            puts(name);
        else if (strcmp(arguments[1], name) == 0)
            return printf("%ju\n", (uintmax_t)path_run(number)) < 0;
    return count < 2 ? 0 : 2;
}
